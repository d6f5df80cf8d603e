package trace

import (
	"cmp"
	"iter"
	"slices"
)

// Bound is an upper bound for every policy with this capacity, even one that knows the
// future and may skip objects: PFOO-L (Berger, Beckmann and Harchol-Balter, SIGMETRICS
// 2018). A hit needs the object stored since its last request, which takes its size times
// the number of requests in between. All hits together take at most the capacity times the
// number of requests. Object hits and byte hits are two bounds: no policy need reach both.
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
	// take solves the fractional knapsack: the cheapest first.
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
