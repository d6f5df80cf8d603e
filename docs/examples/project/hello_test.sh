#!/bin/sh
# Tests the program at the path given.
set -eu

expect() {
	[ "$2" = "$1" ] || { echo "got \"$2\", want \"$1\""; exit 1; }
}
expect 'hello, world' "$("$1")"
expect 'hello, whale' "$("$1" whale)"
echo ok
