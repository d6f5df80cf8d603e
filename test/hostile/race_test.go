//go:build race

package hostile

import "runtime"

// One processor runs it all: where two run timers of a bubble that are due at once, as
// connections in memory have them, the race detector of Go 1.26 crashes.
func init() { runtime.GOMAXPROCS(1) } //nolint:gochecknoinits // before all tests
