//go:build e2e

package e2e

import (
	"fmt"
	"net"
	"net/http"
	"os"
	"slices"
	"testing"

	"go.uber.org/goleak"

	"github.com/cachalot-registry/cachalot/upstream/distributiontest"
)

// TestMain checks that the daemons left no network interface and the tests no goroutine. A
// leftover mount fails the test that finds it in its folder.
func TestMain(m *testing.M) {
	before := interfaces()
	code := m.Run()
	if after := interfaces(); !slices.Equal(before, after) {
		fmt.Fprintf(os.Stderr, "network interfaces were %q, are %q\n", before, after)
		code = max(code, 1)
	}
	http.DefaultClient.CloseIdleConnections()
	if err := goleak.Find(distributiontest.IgnoreBroadcaster()); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = max(code, 1)
	}
	os.Exit(code)
}

func interfaces() []string {
	list, err := net.Interfaces()
	if err != nil {
		return []string{err.Error()}
	}
	var names []string
	for _, i := range list {
		names = append(names, i.Name)
	}
	return names
}
