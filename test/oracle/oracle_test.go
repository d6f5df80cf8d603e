package oracle

import "testing"

// TestOracle tries CACHALOT_TEST_SEEDS seeds, by default 200, from CACHALOT_TEST_SEED on.
func TestOracle(t *testing.T) {
	t.Parallel()
	Run(t, Clients(), Number(t, "CACHALOT_TEST_SEED", 1), Number(t, "CACHALOT_TEST_SEEDS", 200))
}
