#!/bin/sh
# Greets, so that the examples have a program to build and to test.
echo "hello, ${1:-world}"
