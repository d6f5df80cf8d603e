package upstreamtest

import (
	"os"
	"strconv"
)

// Number returns an environment variable's value, at least 1, or otherwise if it is not set.
func Number(tb TB, name string, otherwise int) int {
	tb.Helper()
	s := os.Getenv(name)
	if s == "" {
		return otherwise
	}
	n, err := strconv.Atoi(s)
	if err != nil || n < 1 {
		tb.Fatalf("%s=%q: want a number from 1 on", name, s)
	}
	return n
}
