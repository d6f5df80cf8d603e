package storage

import (
	"cmp"
	"container/heap"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/cachalot-registry/cachalot/storage/index"
)

const (
	// mostVictims bounds how many blobs are picked at once, and so their memory to 20 MiB.
	mostVictims = 1 << 16
	// smallBlob is the size below which an eviction frees too little to matter: configs
	// and the like, which each pull needs. They are evicted last, with the manifests.
	smallBlob = 64 << 10
	// Small blobs and manifests are evicted last only while they are at most one smallShare-th
	// of all bytes; usually they are a few hundredths. Otherwise manifests of 4 MiB could push
	// out all layers.
	smallShare = 8
	// Blobs that were used once are evicted first while they are more than one onceShare-th
	// of all bytes. docs/eviction.md has the measurements.
	onceShare = 4
	// Uses within correlationWindow count as one: the jobs of a pipeline start together,
	// and many clients fetch a blob in parts.
	correlationWindow = time.Minute
)

// victim is a blob that may be evicted.
type victim struct {
	digest digest.Digest
	index.Record
}

// diskBytes is what the blob takes of the disk.
func (v victim) diskBytes() int64 { return blocks(v.Size) }

// Classes of victims, in the order in which they are evicted.
const (
	orphaned = iota // nothing points to it
	limited
	probation
	protected
	small // or a manifest
)

func (v victim) class() int {
	switch {
	case v.Orphaned:
		return orphaned
	case v.Until != 0:
		return limited
	case v.Manifest || v.Size < smallBlob:
		return small
	}
	return v.byUse()
}

// byUse returns the class of a victim as if it were not small.
func (v victim) byUse() int {
	if v.Again {
		return protected
	}
	return probation
}

// victims picks the blobs to evict for so many bytes, in the order of eviction, and returns
// their disk space. It scans all records with one picker for each rule, because only the
// end of the scan tells which rule applies.
func (e *evictor) victims(bytes int64) (picked []victim, sum int64) {
	var pickers []*picker
	for _, r := range []rule{{}, {evenOnce: true}, {evenSmall: true}, {evenOnce: true, evenSmall: true}} {
		pickers = append(pickers, &picker{rule: r, bytes: bytes})
	}
	var all shares
	wanted := func(v victim) bool {
		return slices.ContainsFunc(pickers, func(p *picker) bool { return p.wants(v) })
	}
	begun, seen := time.Now(), 0
	err := e.index.Records("", func(d []byte, r index.Record) bool {
		if seen++; seen >= step {
			e.breathe(time.Since(begun))
			begun, seen = time.Now(), 0
		}
		v := victim{Record: r}
		all.add(v)
		if !wanted(v) {
			return e.life.ctx.Err() == nil
		}
		v.digest = digest.Digest(d)
		if e.store.havePins() {
			seen += pinStep
		}
		if wanted(v) && !e.store.busy(v.digest) && !e.store.pinned(v.digest) {
			for _, p := range pickers {
				p.offer(v)
			}
		}
		return e.life.ctx.Err() == nil
	})
	if err != nil {
		e.log.Error("cannot read index for eviction", "error", err)
	}
	holds := all.rule(e.ledger.total())
	p := pickers[slices.IndexFunc(pickers, func(p *picker) bool { return p.rule == holds })]
	slices.SortFunc(p.picked, p.compare)
	return p.picked, p.sum
}

// rule says which classes are treated alike.
type rule struct {
	evenOnce  bool // blobs used once are like blobs used again; otherwise no new blob would stay
	evenSmall bool // small blobs and manifests are like large blobs
}

// class returns a victim's class under the rule.
func (r rule) class(v victim) int {
	c := v.class()
	if c == small && r.evenSmall {
		c = v.byUse()
	}
	if c == probation && r.evenOnce {
		return protected
	}
	return c
}

// shares are the disk bytes of some classes.
type shares struct{ once, small, smallOnce int64 }

func (s *shares) add(v victim) {
	switch v.class() {
	case probation:
		s.once += v.diskBytes()
	case small:
		s.small += v.diskBytes()
		if v.byUse() == probation {
			s.smallOnce += v.diskBytes()
		}
	}
}

// rule returns the rule that applies if all blobs together have total bytes.
func (s *shares) rule(total int64) rule {
	r, once := rule{evenSmall: s.small > total/smallShare}, s.once
	if r.evenSmall {
		once += s.smallOnce
	}
	r.evenOnce = once <= total/onceShare
	return r
}

// picker picks the victims that are evicted first, up to so many bytes. They are a heap,
// with the one that is evicted last on top.
type picker struct {
	rule

	bytes  int64
	picked []victim
	sum    int64 // of the sizes of picked
}

// compare orders victims by class; within a class the sooner limit is evicted first, then the
// less recently used, then, of those used in the same second, the less often used. A small
// cache may be replaced within a second, and what is used all the time must stay.
func (p *picker) compare(v, w victim) int {
	return cmp.Or(cmp.Compare(p.class(v), p.class(w)), cmp.Compare(v.Expires(), w.Expires()),
		cmp.Compare(v.Accessed, w.Accessed), cmp.Compare(v.Uses, w.Uses), cmp.Compare(v.digest, w.digest))
}

// wants reports whether offer may take v. Without its digest v compares as the first of equals.
func (p *picker) wants(v victim) bool {
	return p.sum < p.bytes && len(p.picked) < mostVictims || p.compare(v, p.picked[0]) < 0
}

// offer picks v if the picker wants it, and then drops victims that are too many.
func (p *picker) offer(v victim) {
	if !p.wants(v) {
		return
	}
	heap.Push(p, v)
	for p.sum += v.diskBytes(); len(p.picked) > mostVictims || len(p.picked) > 1 && p.sum-p.picked[0].diskBytes() >= p.bytes; {
		p.sum -= heap.Pop(p).(victim).diskBytes()
	}
}

func (p *picker) Len() int           { return len(p.picked) }
func (p *picker) Less(i, j int) bool { return p.compare(p.picked[j], p.picked[i]) < 0 }
func (p *picker) Swap(i, j int)      { p.picked[i], p.picked[j] = p.picked[j], p.picked[i] }
func (p *picker) Push(v any)         { p.picked = append(p.picked, v.(victim)) }
func (p *picker) Pop() any {
	v := p.picked[len(p.picked)-1]
	p.picked = p.picked[:len(p.picked)-1]
	return v
}
