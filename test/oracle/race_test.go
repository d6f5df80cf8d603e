//go:build race

package oracle

import (
	"runtime"
	"testing"
)

// TestMain sets GOMAXPROCS to 1: the race detector of Go 1.26 crashes if two processors run
// timers of a bubble that are due at once, as connections in memory have them.
func TestMain(m *testing.M) {
	runtime.GOMAXPROCS(1)
	m.Run()
}
