package trace

import "iter"

// Request is one GET of an object. A Key always has the same Size.
type Request struct {
	Time     int64 // Unix seconds; never less than the previous request's
	Key      uint64
	Size     int64
	Manifest bool
}

// Policy is a cache with a capacity in bytes.
type Policy interface {
	// Get reports whether the object is stored. If not, the policy stores it or skips it.
	Get(Request) bool
	// Used is the number of stored bytes.
	Used() int64
}

// Result counts requests and hits, in objects and bytes.
type Result struct {
	Objects, ObjectHits int64
	Bytes, ByteHits     int64
}

// ObjectRatio is the share of requests that were hits.
func (r Result) ObjectRatio() float64 { return float64(r.ObjectHits) / float64(max(r.Objects, 1)) }

// ByteRatio is the share of bytes that were hits.
func (r Result) ByteRatio() float64 { return float64(r.ByteHits) / float64(max(r.Bytes, 1)) }

// Replay sends all requests to the policy in order.
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

// UniqueBytes is the size of all objects together.
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
