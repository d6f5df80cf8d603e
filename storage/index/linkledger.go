package index

import (
	"bytes"
	"context"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
)

// linkLedger bounds the bytes of links: a registry may claim one blob in any number of
// repositories. Of a blob that a registry has in more than fewPlaces repositories, the further
// links are evicted first, because a blob without a link is not served in an outage. Pinned
// links are not evicted.
//
// Links that were removed with their blobs count until the next recount.
type linkLedger struct {
	*boundedRecords

	pinned     func(upstream, repository string) bool
	group      func(upstream string) string // see cell
	unrecorded *lru.Cache[string, passingLink]
}

// passingLink is a link that was not recorded, because the index is full. It is used by the
// request that has asked the registry about it.
type passingLink struct {
	value []byte
	until time.Time
}

const (
	// fewPlaces links of a registry to one blob are evicted last.
	fewPlaces = 32
	// passingLinks are found for passingFor.
	passingLinks, passingFor = 4096, 10 * time.Second
)

func newLinkLedger(x *Index, cfg Config) *linkLedger {
	unrecorded, err := lru.New[string, passingLink](passingLinks)
	if err != nil {
		panic(err) // its size is not positive
	}
	l := &linkLedger{pinned: cfg.Pinned, group: x.tags.group, unrecorded: unrecorded}
	l.boundedRecords = &boundedRecords{
		index: x, kind: 'l', name: "links", max: cfg.Max, wanted: make(chan struct{}, 1), rest: cfg.Rest, pick: l.pick,
		changed: func(_, _ int64) {}, gone: func(int64) {}, // the log says so
	}
	return l
}

// put writes a link. If the index is full it is found for a moment only.
func (l *linkLedger) put(key, value []byte) error {
	recorded, err := l.boundedRecords.put(key, value, 0)
	if err == nil && !recorded {
		l.unrecorded.Add(string(key), passingLink{bytes.Clone(value), time.Now().Add(passingFor)})
	}
	return err
}

// get reads a link; a missing one is (false, nil).
func (l *linkLedger) get(key []byte, read func([]byte) error) (bool, error) {
	ok, err := l.index.get(key, read)
	if ok || err != nil || l.unrecorded.Len() == 0 {
		return ok, err
	}
	passing, ok := l.unrecorded.Get(string(key))
	if !ok || !time.Now().Before(passing.until) {
		return false, nil
	}
	return true, read(passing.value)
}

// pick returns the links to evict for so many bytes.
func (l *linkLedger) pick(ctx context.Context, take int64) (picked []recordVictim, err error) {
	sizes := map[cell]int64{}
	if err := l.cells(ctx, func(c cell, key, value []byte) { sizes[c] += recordBytes(key, value) }); err != nil {
		return nil, err
	}
	goes := parts(sizes, take)
	err = l.cells(ctx, func(c cell, key, value []byte) {
		if goes[c] > 0 {
			goes[c] -= recordBytes(key, value)
			picked = append(picked, newVictim(key, value))
		}
	})
	return picked, err
}

// cells calls visit for each link that may be evicted. key and value are valid only during
// the call.
func (l *linkLedger) cells(ctx context.Context, visit func(c cell, key, value []byte)) error {
	var blob []byte // the key up to the upstream: all links of both follow each other
	places := 0
	return l.each(ctx, func(key, value []byte) {
		at, ok := decodeLinkAt(key, value)
		if !ok {
			return
		}
		upstream, repository := at.Upstream(), at.Repository()
		if of := key[:len(key)-len(repository)]; !bytes.Equal(of, blob) {
			blob, places = append(blob[:0], of...), 0
		}
		places++
		if !l.pinned(string(upstream), string(repository)) {
			visit(cell{kept: places <= fewPlaces, group: l.group(string(upstream))}, key, value)
		}
	})
}
