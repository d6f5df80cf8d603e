package trace

import "testing"

// TestScanResistance: on the day after a scan, with a quarter of the bytes as capacity, LRU
// has evicted what is pulled daily; 2Q still has most of it.
func TestScanResistance(t *testing.T) {
	t.Parallel()
	w := DefaultWorkload(1)
	w.Days, w.Scan = 12, 11
	room := UniqueBytes(w.Requests()) / 4
	lost := func(policy func(int64) Policy) float64 {
		var ratio [2]float64
		for i, scan := range []int{0, 11} {
			w.Scan = scan
			p := policy(room)
			var res Result
			for r := range w.Requests() {
				hit := p.Get(r)
				if r.Time/day < 11 {
					continue
				}
				res.Bytes += r.Size
				if hit {
					res.ByteHits += r.Size
				}
			}
			ratio[i] = 100 * res.ByteRatio()
		}
		return ratio[0] - ratio[1]
	}
	if got := lost(LRU); got < 2 {
		t.Errorf("LRU lost %.1f points to a scan: it shows nothing of 2Q", got)
	}
	if got := lost(TwoQ); got > 1 {
		t.Errorf("2Q lost %.1f points to a scan, want at most 1", got)
	}
}
