package index

import (
	"bytes"
	"context"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
)

// linkLedger keeps links within a bound: a registry may claim one blob in any number of
// repositories. What goes first are the places of a registry that has a blob in more than
// fewPlaces: a blob that has none left is not served in an outage. Nothing that is pinned
// goes.
//
// Links that go with their blobs count until all are added up.
type linkLedger struct {
	*boundedRecords

	pinned     func(upstream, repository string) bool
	group      func(upstream string) string // who pays: see [cell]
	unrecorded *lru.Cache[string, passingLink]
}

// passingLink is one that there was no room for: it is good for the request that has
// asked the registry about it.
type passingLink struct {
	value []byte
	until time.Time
}

const (
	// fewPlaces of a registry for a blob go last.
	fewPlaces = 32
	// passingLinks are remembered for passingFor.
	passingLinks, passingFor = 4096, 10 * time.Second
)

func newLinkLedger(x *Index, cfg Config) *linkLedger {
	unrecorded, err := lru.New[string, passingLink](passingLinks)
	if err != nil {
		panic(err) // it has places
	}
	l := &linkLedger{pinned: cfg.Pinned, group: x.tags.group, unrecorded: unrecorded}
	l.boundedRecords = &boundedRecords{
		index: x, kind: 'l', name: "places of blobs", max: cfg.Max, wanted: make(chan struct{}, 1), rest: cfg.Rest, pick: l.pick,
		changed: func(_, _ int64) {}, gone: func(int64) {}, // the log says so
	}
	return l
}

// put writes a link. One that there is no room for is good for a moment.
func (l *linkLedger) put(key, value []byte) error {
	recorded, err := l.boundedRecords.put(key, value, 0)
	if err == nil && !recorded {
		l.unrecorded.Add(string(key), passingLink{bytes.Clone(value), time.Now().Add(passingFor)})
	}
	return err
}

// get reads a link; one that there is not is (false, nil).
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

// pick returns the least useful links that take so many bytes.
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

// cells calls visit for every link that may go. What visit is given is its own only during
// the call.
func (l *linkLedger) cells(ctx context.Context, visit func(c cell, key, value []byte)) error {
	var blob []byte // with the upstream: links of both follow each other
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
