package storage

import (
	"log/slog"
	"maps"
	"math"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/cachalot-registry/cachalot/storage/index"
)

// use is what the hits on a blob change in its record.
type use struct {
	accessed, until int64
	times           uint32 // answers from the stored blob
}

func (u use) apply(r *index.Record) {
	r.Again = r.Again || u.accessed-r.Accessed >= int64(correlationWindow/time.Second)
	r.Accessed, r.Until, r.Orphaned = u.accessed, longer(r.Until, u.until), false
	r.Uses += min(u.times, math.MaxUint32-r.Uses)
}

// accessLog collects the uses of blobs in memory, and writes them to the index in
// batches. It also has the small blobs in memory: a hit on one of them takes mu once, for
// the content and for its use.
type accessLog struct {
	ledger *ledger
	log    *slog.Logger

	// flushing is held while uses are written: they are in neither uses nor the index
	// then. mu and ledger.mu are taken under it.
	flushing sync.Mutex

	mu     sync.Mutex // guards the fields below; taken under gate.mu, and no lock is taken under it
	uses   map[digest.Digest]use
	small  *memory
	closed bool // no more hits from memory
}

func newAccessLog(l *ledger, log *slog.Logger) *accessLog {
	return &accessLog{ledger: l, log: log, uses: map[digest.Digest]use{}, small: newMemory()}
}

// hit returns small content from memory and counts its use.
func (l *accessLog) hit(d digest.Digest, keep Retention) (content []byte, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return nil, false
	}
	content, ok = l.small.get(d)
	if ok {
		l.touchLocked(d, keep, 1)
	}
	return content, ok
}

// touch counts a use of so many hits. small, if it is not nil, goes into memory.
func (l *accessLog) touch(d digest.Digest, keep Retention, hits uint32, small []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.touchLocked(d, keep, hits)
	if small != nil {
		l.small.add(d, small)
	}
}

func (l *accessLog) touchLocked(d digest.Digest, keep Retention, hits uint32) {
	if keep.NoStore {
		return
	}
	now := time.Now()
	u := use{now.Unix(), keep.until(now), hits}
	if before, ok := l.uses[d]; ok {
		u.until = longer(before.until, u.until)
		u.times += min(before.times, math.MaxUint32-u.times)
	}
	l.uses[d] = u
}

// flush writes the uses since the last flush. When it returns, each use before the call
// is in the index.
func (l *accessLog) flush() {
	l.flushing.Lock()
	defer l.flushing.Unlock()
	l.mu.Lock()
	uses := l.uses
	l.uses = make(map[digest.Digest]use)
	l.mu.Unlock()
	if len(uses) == 0 {
		return
	}
	if err := l.ledger.update(maps.Keys(uses), func(d digest.Digest, r *index.Record) { uses[d].apply(r) }); err != nil {
		l.log.Warn("cannot record blob uses", "error", err)
	}
}

// usedSince reports whether a blob was used, or may have been used, since it had this
// record. The caller has the digest exclusively.
func (l *accessLog) usedSince(d digest.Digest, then index.Record) bool {
	l.flushing.Lock()
	defer l.flushing.Unlock()
	l.mu.Lock()
	_, used := l.uses[d]
	l.mu.Unlock()
	r, _, err := l.ledger.index.Record(d)
	return used || err != nil || r != then
}

// current returns a record with the uses that are not in the index yet.
func (l *accessLog) current(d digest.Digest, r index.Record) index.Record {
	l.mu.Lock()
	defer l.mu.Unlock()
	if u, ok := l.uses[d]; ok {
		u.apply(&r)
	}
	return r
}

// remove drops small content from memory.
func (l *accessLog) remove(d digest.Digest) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.small.remove(d)
}

// memoryBytes is the size of the content in memory.
func (l *accessLog) memoryBytes() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return int64(l.small.bytes)
}

// close ends hits from memory.
func (l *accessLog) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
}
