package storage

import (
	"sync"

	"github.com/opencontainers/go-digest"

	"github.com/cachalot-registry/cachalot/storage/index"
)

// gate says who may open, fill or remove a digest now. A caller that wants a digest which
// another caller removes waits, then looks again. So no caller gets a file that is about
// to be removed, and the caller that removes it sees every hit.
type gate struct {
	// mu guards the fields below, and shut, settling and admitted of each fill. fill.mu and
	// accessLog.mu may be taken under it. No file or network I/O happens under it, except
	// one stat before a fill starts. A hit on a file takes it twice, for a moment.
	//
	// A function that exclusive, exclusiveIdle or exclusivePartial calls does not hold mu, but
	// it holds its digest: accessLog.flushing, space.mu and ledger.mu are taken in it, and
	// evictor.turn and health.listing are taken before it.
	mu     sync.Mutex
	closed bool
	fills  fills
	open   map[digest.Digest]int           // readers of blobs on disk
	going  map[digest.Digest]chan struct{} // digests that one caller has exclusively; closed when it is done
}

func newGate() *gate {
	return &gate{fills: fills{}, open: map[digest.Digest]int{}, going: map[digest.Digest]chan struct{}{}}
}

// close makes enter and start fail with ErrClosed from now on.
func (g *gate) close() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.closed = true
}

// enter joins the upstream's fill of the digest. If there is none it returns nil, and
// the digest counts as open until leave. mediaType is set for a place that was admitted
// to the fill: see admit.
func (g *gate) enter(sc Scope, d digest.Digest, linked bool) (f *fill, mediaType string, err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	f, mediaType, err = g.joinLocked(sc, d, linked)
	if f == nil && err == nil {
		g.open[d]++
	}
	return f, mediaType, err
}

// leave ends what enter has opened.
func (g *gate) leave(d digest.Digest) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.open[d]--; g.open[d] == 0 {
		delete(g.open, d)
	}
}

// start joins the upstream's fill of the digest. If there is none it adds own, and calls
// run with g.mu held, so that close waits for it. If the blob is on disk (here) it fails
// with errAgain.
func (g *gate) start(sc Scope, own *fill, linked bool, here func() bool, run func()) (f *fill, mediaType string, err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	f, mediaType, err = g.joinLocked(sc, own.digest, linked)
	switch {
	case f != nil || err != nil:
		return f, mediaType, err
	case here():
		return nil, "", errAgain // a fill has ended since it was looked for
	}
	g.fills.add(own)
	own.retain(sc.Keep)
	run()
	return own, "", nil
}

// joinLocked joins the upstream's fill of the digest; nil if there is none. It first
// waits until nothing removes the digest: g.mu is free then.
func (g *gate) joinLocked(sc Scope, d digest.Digest, linked bool) (f *fill, mediaType string, err error) {
	for over := g.leavingLocked(sc, d); over != nil; over = g.leavingLocked(sc, d) {
		g.waitLocked(over)
	}
	f = g.fills.of(d, sc.Upstream)
	switch {
	case g.closed:
		return nil, "", ErrClosed
	case f == nil:
		return nil, "", nil
	case !linked && f.place != sc.place():
		var admitted bool
		if mediaType, admitted = f.admitted[sc.place()]; !admitted {
			return nil, "", ErrUnlinked
		}
	}
	f.retain(sc.Keep)
	return f, mediaType, nil
}

// leavingLocked returns a channel that is closed when the scope may have the digest; nil:
// it may now.
func (g *gate) leavingLocked(sc Scope, d digest.Digest) chan struct{} {
	if going := g.going[d]; going != nil {
		return going
	}
	if f := g.fills.of(d, sc.Upstream); f != nil && f.shut {
		return f.left
	}
	return nil
}

// waitLocked waits with g.mu free.
func (g *gate) waitLocked(over chan struct{}) {
	g.mu.Unlock()
	defer g.mu.Lock()
	<-over
}

// ended removes a fill from the table, and calls last before another caller can have the
// digest.
func (g *gate) ended(f *fill, last func()) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.fills.remove(f)
	close(f.left)
	last()
}

// shut makes new callers wait until the fill has left the table.
func (g *gate) shut(f *fill) {
	g.mu.Lock()
	defer g.mu.Unlock()
	f.shut = true
}

// settle decides whether a fill is stored as a blob, by the Keep of those who have joined it.
// The decision is final. If it is stored, nothing removes the digest until the fill has
// left the table; if not, the fill is shut.
func (g *gate) settle(f *fill) (stored bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for going := g.going[f.digest]; going != nil; going = g.going[f.digest] {
		g.waitLocked(going)
	}
	f.shut = f.state().keep.NoStore
	f.settling = !f.shut
	return f.settling
}

// admit lets a place join the fill of its upstream. It returns false if there is no fill,
// or too many places have joined it.
func (g *gate) admit(p index.Place, d digest.Digest, mediaType string) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	f := g.fills.of(d, p.Upstream)
	if f == nil || f.shut || f.admitted == nil || len(f.admitted) >= maxAdmitted {
		return false
	}
	f.admitted[p] = mediaType
	return true
}

// takeAdmitted returns the admitted places. No place is admitted after it.
func (g *gate) takeAdmitted(f *fill) map[index.Place]string {
	g.mu.Lock()
	defer g.mu.Unlock()
	places := f.admitted
	f.admitted = nil
	return places
}

// exclusiveIdle calls f while no other caller can open, store or remove the digest. It
// returns false, without a call, if a reader has the digest open, or another caller has it
// exclusively, or a fill is about to store it. A download in progress does not matter.
func (g *gate) exclusiveIdle(d digest.Digest, f func()) bool {
	return g.exclude(d, func() bool { return g.takenLocked(d) || g.open[d] > 0 }, f)
}

// exclusive is exclusiveIdle, but readers who have the blob open do not matter.
func (g *gate) exclusive(d digest.Digest, f func()) bool {
	return g.exclude(d, func() bool { return g.takenLocked(d) }, f)
}

// exclusivePartial is exclusive, but only a download that writes the partial matters.
func (g *gate) exclusivePartial(p partial, f func()) bool {
	return g.exclude(p.digest, func() bool { return g.going[p.digest] != nil || g.fills.write(p) }, f)
}

// exclude calls f while no other caller can open, store or remove the digest, unless it
// is busy.
func (g *gate) exclude(d digest.Digest, busyLocked func() bool, f func()) bool {
	g.mu.Lock()
	if busyLocked() {
		g.mu.Unlock()
		return false
	}
	over := make(chan struct{})
	g.going[d] = over
	g.mu.Unlock()
	defer func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		close(over)
		delete(g.going, d)
	}()
	f()
	return true
}

// takenLocked reports whether the digest is about to be stored, or one caller has it
// exclusively.
func (g *gate) takenLocked(d digest.Digest) bool {
	return g.going[d] != nil || g.fills.ending(d) != nil
}

// busy reports whether exclusiveIdle would not call its function.
func (g *gate) busy(d digest.Digest) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.takenLocked(d) || g.open[d] > 0
}

// settled waits until a removal of the digest is done, or a download that has all its bytes
// has left the table. Both take a moment.
func (g *gate) settled(d digest.Digest) {
	g.mu.Lock()
	over := g.going[d]
	if f := g.fills.ending(d); f != nil {
		over = f.left
	}
	g.mu.Unlock()
	if over != nil {
		<-over
	}
}

// filling reports whether the digest is being downloaded from an upstream; "": from any.
func (g *gate) filling(d digest.Digest, upstream string) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.fills.among(d, upstream)
}

// writing reports whether a download writes the partial, or is about to.
func (g *gate) writing(p partial) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.fills.write(p)
}

// sentBy returns the upstreams whose downloads of the digest have verified, and may have no
// link yet.
func (g *gate) sentBy(d digest.Digest) []string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.fills.sentBy(d)
}

// running is every download.
func (g *gate) running() []*fill {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.fills.list()
}

// runningOf is every download of the digest.
func (g *gate) runningOf(d digest.Digest) (all []*fill) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, f := range g.fills[d] {
		all = append(all, f)
	}
	return all
}

// opened is how many blobs are being read.
func (g *gate) opened() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return len(g.open)
}
