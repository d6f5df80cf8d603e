package storage

import (
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil"
)

// TestPurgeIsCounted: purged bytes are counted when they leave the disk, and never as an
// eviction for space.
func TestPurgeIsCounted(t *testing.T) {
	t.Parallel()
	s := openStore(t, t.TempDir())
	d := put(t, s, 1, 5000, 1, false)
	other := put(t, s, 2, 5000, 1, false)
	for _, step := range []struct {
		how  Purge
		want PurgeResult
		gone float64
	}{
		{Purge{DryRun: true}, Gone, 0},
		{Purge{}, Gone, 2 * block},
		{Purge{}, Absent, 2 * block},
	} {
		became, _, err := s.Purge(d, step.how)
		gone := testutil.ToFloat64(s.metrics.evictedBytes.WithLabelValues(reasonPurge))
		space := testutil.ToFloat64(s.metrics.evictedBytes.WithLabelValues(reasonSpace))
		if err != nil || became != step.want || gone != step.gone || space != 0 {
			t.Errorf("%+v: %v, %v; %v bytes gone, %v for space", step.how, became, err, gone, space)
		}
	}
	if s.exists(d) || !s.exists(other) || s.ledger.total() != 2*block {
		t.Errorf("%d bytes are left", s.ledger.total())
	}
	checkDisk(t, s)
}
