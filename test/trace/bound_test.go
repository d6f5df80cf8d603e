package trace

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"
)

// TestBound compares the bound with the best result of all possible decisions, for small traces.
func TestBound(t *testing.T) {
	t.Parallel()
	for seed := range uint64(300) {
		rnd := rand.New(rand.NewPCG(seed, 2))
		sizes := make([]int64, 2+rnd.IntN(5))
		var unique int64
		for i := range sizes {
			sizes[i] = 1 + rnd.Int64N(9)
			unique += sizes[i]
		}
		requests := make([]Request, 30)
		for i := range requests {
			k := rnd.IntN(len(sizes))
			requests[i] = Request{Key: uint64(k), Size: sizes[k]}
		}
		capacity := rnd.Int64N(unique + 1)
		bound := Bound(slices.Values(requests), capacity)
		objects := best(requests, sizes, capacity, func(Request) int64 { return 1 })
		bytes := best(requests, sizes, capacity, func(r Request) int64 { return r.Size })
		if bound.ObjectHits < objects || bound.ByteHits < bytes {
			t.Fatalf("seed %d: bound of %d objects and %d bytes; %d and %d can be had", seed, bound.ObjectHits, bound.ByteHits, objects, bytes)
		}
		if all := Bound(slices.Values(requests), unique); all.ObjectHits != best(requests, sizes, unique, func(Request) int64 { return 1 }) {
			t.Fatalf("seed %d: with room for all the bound is %d objects", seed, all.ObjectHits)
		}
		if none := Bound(slices.Values(requests), 0); none.ObjectHits != 0 || none.ByteHits != 0 {
			t.Fatalf("seed %d: with no room the bound is %+v", seed, none)
		}
	}
}

// best tries every set of stored objects after every request.
func best(requests []Request, sizes []int64, capacity int64, worth func(Request) int64) int64 {
	const never = math.MinInt64
	fits := make([]bool, 1<<len(sizes))
	for set := range fits {
		var sum int64
		for k, size := range sizes {
			if set>>k&1 == 1 {
				sum += size
			}
		}
		fits[set] = sum <= capacity
	}
	hits := make([]int64, len(fits))
	for set := range hits {
		if set != 0 {
			hits[set] = never
		}
	}
	for _, r := range requests {
		next := make([]int64, len(fits))
		for set := range next {
			next[set] = never
		}
		for set, h := range hits {
			if h == never {
				continue
			}
			if set>>r.Key&1 == 1 {
				h += worth(r)
			}
			with := set | 1<<r.Key
			for sub := with; ; sub = (sub - 1) & with {
				if fits[sub] {
					next[sub] = max(next[sub], h)
				}
				if sub == 0 {
					break
				}
			}
		}
		hits = next
	}
	return slices.Max(hits)
}
