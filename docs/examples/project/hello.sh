#!/bin/sh
# Greets, for the examples to have something to build and to test.
echo "hello, ${1:-world}"
