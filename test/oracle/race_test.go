//go:build race

package oracle

import (
	"runtime"
	"testing"
)

// TestMain has one processor run it all: where two run timers of a bubble that are due at
// once, as connections in memory have them, the race detector of Go 1.26 crashes.
func TestMain(m *testing.M) {
	runtime.GOMAXPROCS(1)
	m.Run()
}
