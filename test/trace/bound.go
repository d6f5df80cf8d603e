package trace

import (
	"cmp"
	"iter"
	"slices"
)

// Bound is a result that no policy with so many bytes exceeds, not even one that
// knows the future and does without what it likes: PFOO-L (Berger, Beckmann and
// Harchol-Balter, SIGMETRICS 2018). To hit, an object must be kept since it was
// last asked for; that takes its size for so many requests. All hits together
// can take no more than the capacity for as many requests as there are. The
// object and the byte hits are two bounds: no policy need reach both.
func Bound(requests iter.Seq[Request], capacity int64) Result {
	type interval struct{ size, length int64 }
	var (
		intervals []interval
		res       Result
	)
	last := make(map[uint64]int64)
	for r := range requests {
		if since, ok := last[r.Key]; ok && r.Size <= capacity {
			intervals = append(intervals, interval{r.Size, res.Objects - since})
		}
		last[r.Key] = res.Objects
		res.Objects++
		res.Bytes += r.Size
	}
	room := float64(capacity) * float64(res.Objects)
	// take is the knapsack's answer when things can be cut: the cheapest first.
	take := func(cost func(interval) float64, worth func(interval) float64) int64 {
		slices.SortFunc(intervals, func(a, b interval) int { return cmp.Compare(cost(a), cost(b)) })
		left, sum := room, 0.0
		for _, i := range intervals {
			area := float64(i.size) * float64(i.length)
			if area > left {
				return int64(sum + worth(i)*left/area)
			}
			left -= area
			sum += worth(i)
		}
		return int64(sum)
	}
	res.ObjectHits = take(func(i interval) float64 { return float64(i.size) * float64(i.length) },
		func(interval) float64 { return 1 })
	res.ByteHits = take(func(i interval) float64 { return float64(i.length) },
		func(i interval) float64 { return float64(i.size) })
	return res
}
