// Package bounds divides what the process has of something, places for work or memory,
// among those who want it, so that no registry and no client takes all of it.
package bounds

import (
	"cmp"
	"net/netip"
	"sync"
)

// DefaultShare is the part of a bound that one group takes at most.
const DefaultShare = 0.25

// few: of a small bound a group's part is up to so much, but never all.
const few = 8

// Holder is who wants a place.
type Holder struct {
	Group  string // a registry; "": of none
	Client string // an address; "": no client's
}

// Bulkhead bounds work that goes on at a time. Some work may take several places.
//
// A group has no more places than its share. A client may have all that no other wants
// but the last share: of all places, and of its group's. That one is for clients with
// less than a share.
type Bulkhead struct {
	limit int
	share float64

	mu       sync.Mutex // guards the fields below
	taken    int
	byGroup  map[string]int
	byClient map[string]int
	byBoth   map[Holder]int
}

// NewBulkhead divides limit places, at least 1. share is less than 1; 0: DefaultShare.
func NewBulkhead(limit int, share float64) *Bulkhead {
	return &Bulkhead{limit: limit, share: cmp.Or(share, DefaultShare), byGroup: map[string]int{}, byClient: map[string]int{}, byBoth: map[Holder]int{}}
}

// Limit is the number of places.
func (b *Bulkhead) Limit() int { return b.limit }

// GroupLimit is the number of places that one group has at most.
func (b *Bulkhead) GroupLimit() int { return max(1, b.part(b.limit), min(few, b.limit-1)) }

// Taken is the number of places that are taken.
func (b *Bulkhead) Taken() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.taken
}

// GroupTaken is the number of places that a group has.
func (b *Bulkhead) GroupTaken(group string) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.byGroup[group]
}

// Enter takes a place, if there is one for the holder. Leave gives it back.
func (b *Bulkhead) Enter(h Holder) bool { return b.enter(h, 1) }

// Leave gives back what Enter has taken.
func (b *Bulkhead) Leave(h Holder) { b.leave(h, 1) }

func (b *Bulkhead) enter(h Holder, n int) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.fits(h.Client, b.limit-b.taken-n, b.limit, b.byClient[h.Client]+n) {
		return false
	}
	if limit := b.GroupLimit(); h.Group != "" && !b.fits(h.Client, limit-b.byGroup[h.Group]-n, limit, b.byBoth[h]+n) {
		return false
	}
	b.add(h, n)
	return true
}

func (b *Bulkhead) leave(h Holder, n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.add(h, -n)
}

// fits reports whether a client may have mine of limit places, when so many are left then.
func (b *Bulkhead) fits(client string, left, limit, mine int) bool {
	share := b.part(limit)
	return left >= share || left >= 0 && (client == "" || mine <= share)
}

func (b *Bulkhead) part(limit int) int { return int(float64(limit) * b.share) }

func (b *Bulkhead) add(h Holder, n int) {
	b.taken += n
	count(b.byGroup, h.Group, n)
	count(b.byClient, h.Client, n)
	count(b.byBoth, h, n)
}

func count[K comparable](m map[K]int, key K, n int) {
	if m[key] += n; m[key] == 0 {
		delete(m, key)
	}
}

// Client is who an address stands for: itself, or of IPv6 the network of 64 bits, of
// which one host has all addresses (RFC 6177). What is no address stays as it is.
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
