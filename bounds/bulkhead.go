// Package bounds divides a limited resource of the process, places for work or memory,
// so that no registry, no repository and no client takes all of it.
package bounds

import (
	"cmp"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// RetryAfter is when a client may try again after there was no place for its request.
const RetryAfter = 5 * time.Second

// DefaultShare is the part of a bound that one group takes at most.
const DefaultShare = 0.25

// few is how many places of a small bound a group may take, but never all of them.
const few = 8

// Holder is the user of a place, or of one that it waits for.
type Holder struct {
	Group      string // a registry; "": none
	Repository string // of the group; "": none
	Client     string // an address; "": none
}

// Bulkhead bounds concurrent work. Some work takes several places.
//
// A group has at most GroupLimit places. A client may take any free place except the last
// share: of all places, and of its group's. The last share is for clients that have less
// than a share. The same holds for a repository in its group's places, or in all places
// if there is no group: a repository that hangs leaves some to the others.
type Bulkhead struct {
	limit int
	share float64

	mu           sync.Mutex // guards the fields below, and those of the waiters
	taken        int
	byGroup      map[string]int
	byClient     map[string]int
	byBoth       map[Holder]int // group and client
	byRepository map[Holder]int // group and repository
	waiting      []*waiter      // in order of arrival; none of them could enter now
}

// waiter is a holder that waits for a place.
type waiter struct {
	holder Holder
	has    bool
	ready  chan struct{} // closed when it has one
}

// NewBulkhead returns a Bulkhead of limit places, at least 1. share is less than 1; 0: DefaultShare.
func NewBulkhead(limit int, share float64) *Bulkhead {
	return &Bulkhead{
		limit: limit, share: cmp.Or(share, DefaultShare),
		byGroup: map[string]int{}, byClient: map[string]int{}, byBoth: map[Holder]int{}, byRepository: map[Holder]int{},
	}
}

// Limit returns the number of places.
func (b *Bulkhead) Limit() int { return b.limit }

// GroupLimit returns the number of places that one group has at most.
func (b *Bulkhead) GroupLimit() int { return max(1, b.part(b.limit), min(few, b.limit-1)) }

// Taken returns the number of places that are taken.
func (b *Bulkhead) Taken() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.taken
}

// Enter takes a place, and reports whether there is one for the holder. Leave gives it back.
func (b *Bulkhead) Enter(h Holder) bool { return b.enter(h, 1) }

// Leave gives back what Enter has taken.
func (b *Bulkhead) Leave(h Holder) { b.leave(h, 1) }

// Queue waits for a place: ready is closed when the holder has one. Of the waiters that may
// have a place, the one that has waited longest gets it. leave gives it back, or stops
// waiting for it; it may be called twice.
func (b *Bulkhead) Queue(h Holder) (ready <-chan struct{}, leave func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	w := &waiter{holder: h, ready: make(chan struct{})}
	if !b.admit(w) {
		b.waiting = append(b.waiting, w)
	}
	return w.ready, sync.OnceFunc(func() { b.giveUp(w) })
}

func (b *Bulkhead) giveUp(w *waiter) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if w.has {
		b.leaveLocked(w.holder, 1)
		return
	}
	i := slices.Index(b.waiting, w)
	b.waiting = slices.Delete(b.waiting, i, i+1)
}

// admit gives a waiter a place, if there is one for it.
func (b *Bulkhead) admit(w *waiter) bool {
	if b.taken >= b.limit || !b.enterLocked(w.holder, 1) {
		return false
	}
	w.has = true
	close(w.ready)
	return true
}

func (b *Bulkhead) enter(h Holder, n int) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.enterLocked(h, n)
}

func (b *Bulkhead) enterLocked(h Holder, n int) bool {
	if !b.fits(h, n) {
		return false
	}
	b.add(h, n)
	return true
}

// Helps reports whether there is a place for h after other has left one of its places.
func (b *Bulkhead) Helps(h, other Holder) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.add(other, -1)
	defer b.add(other, 1)
	return b.fits(h, 1)
}

// fits reports whether there are n places for a holder.
func (b *Bulkhead) fits(h Holder, n int) bool {
	limit, left := b.limit, b.limit-b.taken-n
	if !b.may(h.Client, left, limit, b.byClient[h.Client]+n) {
		return false
	}
	if h.Group != "" {
		limit = b.GroupLimit()
		left = limit - b.byGroup[h.Group] - n
		if !b.may(h.Client, left, limit, b.byBoth[h.ofClient()]+n) {
			return false
		}
	}
	return b.may(h.Repository, left, limit, b.byRepository[h.ofRepository()]+n)
}

func (b *Bulkhead) leave(h Holder, n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.leaveLocked(h, n)
}

func (b *Bulkhead) leaveLocked(h Holder, n int) {
	b.add(h, -n)
	if len(b.waiting) > 0 {
		b.waiting = slices.DeleteFunc(b.waiting, b.admit)
	}
}

// may reports whether a client, or a repository, may have mine of limit places, if left
// places are free after that.
func (b *Bulkhead) may(who string, left, limit, mine int) bool {
	share := b.part(limit)
	return left >= share || left >= 0 && (who == "" || mine <= share)
}

func (b *Bulkhead) part(limit int) int { return int(float64(limit) * b.share) }

func (b *Bulkhead) add(h Holder, n int) {
	b.taken += n
	count(b.byGroup, h.Group, n)
	count(b.byClient, h.Client, n)
	count(b.byBoth, h.ofClient(), n)
	count(b.byRepository, h.ofRepository(), n)
}

func (h Holder) ofClient() Holder     { return Holder{Group: h.Group, Client: h.Client} }
func (h Holder) ofRepository() Holder { return Holder{Group: h.Group, Repository: h.Repository} }

func count[K comparable](m map[K]int, key K, n int) {
	if m[key] += n; m[key] == 0 {
		delete(m, key)
	}
}

// Client returns what an address stands for: itself, or for IPv6 its /64 network, because
// one host has all addresses of it (RFC 6177). A string that is no address stays as it is.
func Client(address string) string {
	at, err := netip.ParseAddr(address)
	if err != nil || at.Unmap().Is4() {
		return address
	}
	network, err := at.WithZone("").Prefix(64)
	if err != nil {
		return address
	}
	return network.String()
}
