package oracle

import (
	"testing"

	ut "github.com/cachalot-registry/cachalot/upstream/upstreamtest"
)

// TestOracle tests CACHALOT_TEST_SEEDS seeds, 200 by default, from CACHALOT_TEST_SEED on.
func TestOracle(t *testing.T) {
	t.Parallel()
	Run(t, Clients(), ut.Number(t, "CACHALOT_TEST_SEED", 1), ut.Number(t, "CACHALOT_TEST_SEEDS", 200))
}
