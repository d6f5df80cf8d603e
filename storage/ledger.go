package storage

import (
	"context"
	"errors"
	"iter"
	"math"
	"sync"

	"github.com/opencontainers/go-digest"

	"github.com/cachalot-registry/cachalot/storage/index"
)

// ledger has the number and the bytes of all blobs. They agree with the index's records:
// a blob that is added or removed twice counts once. Bytes are disk space, in whole blocks.
type ledger struct {
	index   *index.Index
	metrics *Metrics

	// mu guards the fields below, and that they agree with the records. The index's locks are
	// taken under it; it is taken last of the store's other locks.
	mu      sync.Mutex
	bytes   int64 // while the records are added up: changes since then
	count   int64
	soonest int64         // no record expires earlier; math.MaxInt64: none has a limit
	adding  chan struct{} // closed once the records are added up; nil after that
}

func newLedger(x *index.Index, m *Metrics) *ledger {
	return &ledger{index: x, metrics: m, soonest: math.MaxInt64, adding: make(chan struct{})}
}

// load adds up the records as they are when it begins. Changes during the scan are
// counted as they happen; they do not wait for it.
func (l *ledger) load(ctx context.Context) error {
	l.mu.Lock()
	if l.adding == nil {
		l.adding = make(chan struct{})
	}
	l.bytes, l.count = 0, 0
	then := l.index.Snapshot()
	l.mu.Unlock()
	defer then.Close()

	var bytes, count int64
	soonest := int64(math.MaxInt64)
	err := then.Records(func(_ []byte, r index.Record) bool {
		bytes += blocks(r.Size)
		count++
		soonest = min(soonest, r.Expires())
		return ctx.Err() == nil
	})
	l.mu.Lock()
	defer l.mu.Unlock()
	close(l.adding)
	l.adding = nil
	l.soonest = min(l.soonest, soonest)
	l.changed(bytes, count)
	return err
}

// loaded waits until the records are added up.
func (l *ledger) loaded(ctx context.Context) {
	l.mu.Lock()
	adding := l.adding
	l.mu.Unlock()
	if adding == nil {
		return
	}
	select {
	case <-adding:
	case <-ctx.Done():
	}
}

// changed adds to the counters, and sets the metrics once the records are added up.
// l.mu is held.
func (l *ledger) changed(bytes, count int64) {
	l.bytes += bytes
	l.count += count
	if l.adding == nil {
		l.metrics.bytes.Set(float64(l.bytes))
		l.metrics.blobs.Set(float64(l.count))
	}
}

// total returns the bytes of all blobs. It is too low until the records are added up.
func (l *ledger) total() int64 {
	bytes, _ := l.totals()
	return bytes
}

// totals returns the bytes and the number of all blobs.
func (l *ledger) totals() (bytes, count int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.bytes, l.count
}

// size returns a blob's length by its record or, without one, linked: the length by its
// link.
func (l *ledger) size(d digest.Digest, linked int64) int64 {
	if r, ok, err := l.index.Record(d); err == nil && ok {
		return r.Size
	}
	return linked
}

// add records a blob that was just stored.
func (l *ledger) add(d digest.Digest, r index.Record) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	old, known, err := l.index.Record(d)
	if err == nil {
		err = l.put(map[digest.Digest]index.Record{d: r})
	}
	switch {
	case err != nil:
		return err
	case known:
		l.changed(blocks(r.Size)-blocks(old.Size), 0)
	default:
		l.changed(blocks(r.Size), 1)
	}
	return nil
}

// found records the blobs that have no record yet, and returns how many. exists is called
// under the lock, because a file may have been removed since it was listed.
func (l *ledger) found(records map[digest.Digest]index.Record, exists func(digest.Digest) bool) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	unknown := make(map[digest.Digest]index.Record, len(records))
	var bytes int64
	for d, r := range records {
		_, known, err := l.index.Record(d)
		if err != nil {
			return 0, err
		}
		if !known && exists(d) {
			unknown[d] = r
			bytes += blocks(r.Size)
		}
	}
	if err := l.put(unknown); err != nil {
		return 0, err
	}
	l.changed(bytes, int64(len(unknown)))
	return len(unknown), nil
}

// put writes records; l.mu is held.
func (l *ledger) put(records map[digest.Digest]index.Record) error {
	for _, r := range records {
		l.soonest = min(l.soonest, r.Expires())
	}
	return l.index.PutRecords(records)
}

// drop removes the record and the links of a blob, if gone says that its file is gone.
func (l *ledger) drop(d digest.Digest, gone func() bool) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	r, known, err := l.index.Record(d)
	if err != nil || !gone() {
		return err
	}
	if err := l.index.Forget(d); err != nil {
		return err
	}
	if known {
		l.changed(-blocks(r.Size), -1)
	}
	return nil
}

// update changes the records of those blobs that still have one. A record that cannot be
// read does not stop the others.
func (l *ledger) update(digests iter.Seq[digest.Digest], change func(digest.Digest, *index.Record)) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	records := make(map[digest.Digest]index.Record)
	var failed error
	for d := range digests {
		r, ok, err := l.index.Record(d)
		if err != nil {
			failed = err
		} else if ok {
			change(d, &r)
			records[d] = r
		}
	}
	return errors.Join(failed, l.put(records))
}

// due reports whether a limit may have passed by now. If so, the caller scans all records,
// and then calls expect with the next one.
func (l *ledger) due(now int64) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.soonest >= now {
		return false
	}
	l.soonest = math.MaxInt64
	return true
}

// expect says that the next record expires at until.
func (l *ledger) expect(until int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.soonest = min(l.soonest, until)
}
