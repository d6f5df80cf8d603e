package storage

import (
	"sync"

	"github.com/opencontainers/go-digest"
)

// ledger keeps the index's blob records and the byte counters the same. Adding
// or removing a blob twice counts once.
type ledger struct {
	index   *index
	metrics *Metrics

	mu    sync.Mutex // guards the fields below, and that they agree with the records
	bytes int64
	count int64
}

// load adds up the records.
func (l *ledger) load() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.bytes, l.count = 0, 0
	err := l.index.records(func(_ digest.Digest, r record) bool {
		l.bytes += r.size
		l.count++
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
	return l.index.putRecords(map[digest.Digest]record{d: r})
}

// drop forgets a blob whose file is gone.
func (l *ledger) drop(d digest.Digest, gone func() bool) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	r, ok, err := l.index.record(d)
	if err != nil || !ok || !gone() {
		return err
	}
	l.bytes -= r.size
	l.count--
	l.publish()
	return l.index.forget(d)
}

// touch sets the access times of blobs that are still recorded.
func (l *ledger) touch(accessed map[digest.Digest]int64) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	records := make(map[digest.Digest]record, len(accessed))
	for d, at := range accessed {
		if r, ok, err := l.index.record(d); err == nil && ok {
			r.accessed = at
			records[d] = r
		}
	}
	return l.index.putRecords(records)
}
