package trace

import "iter"

// Request is one GET of an object. A Key always has the same Size.
type Request struct {
	Time     int64 // Unix seconds; never less than the one before
	Key      uint64
	Size     int64
	Manifest bool
}

// Policy is a cache with room for so many bytes.
type Policy interface {
	// Get says whether the object is kept. If not, the policy takes it in, or
	// does without.
	Get(Request) bool
	// Used is the bytes kept.
	Used() int64
}

// Result counts what a policy was asked for, and what it had.
type Result struct {
	Objects, ObjectHits int64
	Bytes, ByteHits     int64
}

// ObjectRatio is the share of requests that were hits.
func (r Result) ObjectRatio() float64 { return float64(r.ObjectHits) / float64(max(r.Objects, 1)) }

// ByteRatio is the share of bytes that were hits.
func (r Result) ByteRatio() float64 { return float64(r.ByteHits) / float64(max(r.Bytes, 1)) }

// Replay asks the policy for everything in turn.
func Replay(requests iter.Seq[Request], p Policy) Result {
	var res Result
	for r := range requests {
		res.Objects++
		res.Bytes += r.Size
		if p.Get(r) {
			res.ObjectHits++
			res.ByteHits += r.Size
		}
	}
	return res
}

// UniqueBytes is the room that everything would take.
func UniqueBytes(requests iter.Seq[Request]) int64 {
	seen := make(map[uint64]struct{})
	var sum int64
	for r := range requests {
		if _, ok := seen[r.Key]; !ok {
			seen[r.Key] = struct{}{}
			sum += r.Size
		}
	}
	return sum
}
