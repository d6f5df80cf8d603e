//go:build race

package hostile

import "runtime"

// GOMAXPROCS is 1, because the race detector of Go 1.26 crashes if two processors run
// timers of a bubble that are due at once. Connections in memory have such timers.
func init() { runtime.GOMAXPROCS(1) } //nolint:gochecknoinits // before all tests
