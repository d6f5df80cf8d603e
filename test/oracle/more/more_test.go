package more

import (
	"testing"

	"github.com/containerd/log"

	"github.com/cachalot-registry/cachalot/test/oracle"
	ut "github.com/cachalot-registry/cachalot/upstream/upstreamtest"
)

// TestOracle tests CACHALOT_TEST_SEEDS seeds, 200 by default, from CACHALOT_TEST_SEED on.
func TestOracle(t *testing.T) {
	t.Parallel()
	clients := []oracle.Client{{Name: "containerd", Pull: pullContainerd}}
	oracle.Run(t, clients, ut.Number(t, "CACHALOT_TEST_SEED", 1), ut.Number(t, "CACHALOT_TEST_SEEDS", 200))
}

// TestOracleOnLoopback tests a tenth of them.
func TestOracleOnLoopback(t *testing.T) {
	t.Parallel()
	clients := []oracle.Client{{Name: "podman", Pull: pullImage}}
	oracle.RunOnLoopback(t, clients, ut.Number(t, "CACHALOT_TEST_SEED", 1), ut.Number(t, "CACHALOT_TEST_SEEDS", 200)/10)
}

// TestMain silences containerd, which logs its retries.
func TestMain(m *testing.M) {
	if err := log.SetLevel("panic"); err != nil {
		panic(err)
	}
	m.Run()
}
