package storage

import (
	"errors"
	"iter"
	"math"
	"sync"

	"github.com/opencontainers/go-digest"
)

// ledger keeps the index's blob records and the byte counters the same. Adding
// or removing a blob twice counts once.
type ledger struct {
	index   *index
	metrics *Metrics

	mu      sync.Mutex // guards the fields below, and that they agree with the records
	bytes   int64
	count   int64
	soonest int64 // no record expires before; math.MaxInt64: none ever does
}

// load adds up the records.
func (l *ledger) load() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.bytes, l.count, l.soonest = 0, 0, math.MaxInt64
	err := l.index.records(func(_ digest.Digest, r record) bool {
		l.bytes += r.size
		l.count++
		l.soonest = min(l.soonest, r.expires())
		return true
	})
	l.publish()
	return err
}

func (l *ledger) publish() {
	l.metrics.bytes.Set(float64(l.bytes))
	l.metrics.blobs.Set(float64(l.count))
}

// total is the bytes of all blobs.
func (l *ledger) total() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.bytes
}

// add records a blob, unless it is recorded and overwrite is false. exists is
// asked under the lock: a file may have gone since it was seen.
func (l *ledger) add(d digest.Digest, r record, overwrite bool, exists func() bool) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	old, ok, err := l.index.record(d)
	if err == nil && ok && !overwrite || !exists() {
		return nil
	}
	if ok {
		l.bytes -= old.size
		l.count--
	}
	l.bytes += r.size
	l.count++
	l.publish()
	return l.put(map[digest.Digest]record{d: r})
}

// put writes records; l.mu is held.
func (l *ledger) put(records map[digest.Digest]record) error {
	for _, r := range records {
		l.soonest = min(l.soonest, r.expires())
	}
	return l.index.putRecords(records)
}

// drop forgets a blob whose file is gone, and its links.
func (l *ledger) drop(d digest.Digest, gone func() bool) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	r, ok, err := l.index.record(d)
	if err != nil || !gone() {
		return err
	}
	if ok {
		l.bytes -= r.size
		l.count--
		l.publish()
	}
	return l.index.forget(d)
}

// update changes the records of blobs that are still recorded. One that cannot
// be read keeps none of the others from it.
func (l *ledger) update(digests iter.Seq[digest.Digest], change func(digest.Digest, *record)) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	records := make(map[digest.Digest]record)
	var failed error
	for d := range digests {
		r, ok, err := l.index.record(d)
		if err != nil {
			failed = err
		} else if ok {
			change(d, &r)
			records[d] = r
		}
	}
	return errors.Join(failed, l.put(records))
}

// due says whether a limit can have passed by now. Whoever is told so looks at
// all records, and then says by expect what is left.
func (l *ledger) due(now int64) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.soonest >= now {
		return false
	}
	l.soonest = math.MaxInt64
	return true
}

// expect says that a record expires at until, and none that due spoke of before.
func (l *ledger) expect(until int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.soonest = min(l.soonest, until)
}
