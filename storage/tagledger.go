package storage

import (
	"container/heap"
	"context"
	"errors"
	"log/slog"
	"sort"
	"sync"
	"sync/atomic"
	"time"
)

// tagLedger counts the records of tags and lists and what they take of the index, and
// keeps that within a bound: a client that asks for many tags adds a record for each. Above
// tagsHigh percent of it records go in the background, down to tagsLow percent. A new one
// that there is no room for until then is not written: its name is asked for again.
//
// What nothing is kept of goes first: only HEADs have asked for it. Of the registries
// those that have the most pay, so that none makes the index forget the others' tags; all
// that clients have named are one. Of what is left the least recently checked go.
type tagLedger struct {
	index   *index
	metrics *Metrics
	log     *slog.Logger
	max     int64 // bytes; 0: no bound
	pinned  func(upstream, repository string) bool
	listed  atomic.Pointer[func(upstream string) bool] // see [Store.SetListed]
	wanted  chan struct{}                              // has a value when there is something to trim
	rest    func(ctx context.Context, took time.Duration)

	mu    sync.Mutex // guards the fields below, and that they agree with the records
	bytes int64      // until the records are added up: of what has changed since
	count int64
}

const (
	// Two looks at a million records take 8 s of a processor: a tenth at a time goes, some
	// 0.1 ms for each.
	tagsHigh, tagsLow = 98, 88
	// mostTags are picked at once, which bounds the memory that takes to some 20 MiB.
	mostTags = 1 << 17
	// recordOverhead is what badger adds to a key and its value: lengths, a version and
	// the time at which it expires.
	recordOverhead = 16
	// recountTags is how often records are added up, for badger drops what has expired
	// and tells no one.
	recountTags = 24 * time.Hour
)

func newTagLedger(x *index, bound int64, pinned func(upstream, repository string) bool, m *Metrics, log *slog.Logger) *tagLedger {
	m.tagsLimit.Set(float64(bound))
	return &tagLedger{index: x, max: bound, pinned: pinned, metrics: m, log: log, wanted: make(chan struct{}, 1), rest: rest}
}

func tagBytes(key, value []byte) int64 { return int64(len(key)+len(value)) + recordOverhead }

// put writes a record, which badger forgets after keep.
func (l *tagLedger) put(k TagKey, t Tag, keep time.Duration) error {
	key, value := tagKey(k), t.encode()
	bytes := tagBytes(key, value)
	l.mu.Lock()
	defer l.mu.Unlock()
	var before int64
	known, err := l.index.get(key, func(b []byte) error { before = tagBytes(key, b); return nil })
	switch {
	case err != nil:
		return err
	case !known && l.max > 0 && l.bytes+bytes > l.max:
		l.metrics.unrecordedTags.Inc()
		l.trimSoon()
		return nil
	}
	if err := l.index.put(key, value, keep); err != nil {
		return err
	}
	if known {
		l.changed(bytes-before, 0)
	} else {
		l.changed(bytes, 1)
	}
	return nil
}

// remove forgets records; keys that have none are passed over.
func (l *tagLedger) remove(keys ...[]byte) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	var bytes, count int64
	for _, key := range keys {
		known, err := l.index.get(key, func(b []byte) error { bytes += tagBytes(key, b); return nil })
		if err != nil {
			return err
		}
		if known {
			count++
		}
	}
	if err := l.index.removeAll(keys); err != nil {
		return err
	}
	l.changed(-bytes, -count)
	return nil
}

// changed counts; l.mu is held.
func (l *tagLedger) changed(bytes, count int64) {
	l.bytes += bytes
	l.count += count
	l.metrics.tags.Set(float64(l.count))
	l.metrics.tagsBytes.Set(float64(l.bytes))
	if l.max > 0 && l.bytes > share(l.max, tagsHigh) {
		l.trimSoon()
	}
}

func (l *tagLedger) trimSoon() {
	select {
	case l.wanted <- struct{}{}:
	default:
	}
}

func (l *tagLedger) totals() (bytes, count int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.bytes, l.count
}

// run trims when there is something to, until ctx ends.
func (l *tagLedger) run(ctx context.Context) {
	again := time.NewTicker(recountTags)
	defer again.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-again.C:
			if err := l.recount(ctx); err != nil {
				l.log.Error("cannot add up tags", "error", err)
			}
			continue
		case <-l.wanted:
		}
		switch enough, err := l.trim(ctx); {
		case enough || ctx.Err() != nil:
			continue
		case err != nil:
			l.log.Error("cannot evict tags", "error", err)
		default:
			l.log.Warn("index full: the tags in it are pinned, and others are not recorded; raise storage.max_index, or unpin some")
		}
		pauseFor(ctx, maxLooking) // the next look would find no more
	}
}

// recount adds up the records as they are when it begins, and takes that for what they
// take. What changes meanwhile is counted as it does.
func (l *tagLedger) recount(ctx context.Context) error {
	l.mu.Lock()
	wasBytes, wasCount := l.bytes, l.count
	then := l.index.view([]byte{'t'})
	l.mu.Unlock()
	defer then.close()
	var bytes, count int64
	err := then.scan(func(key, value []byte) bool {
		bytes += tagBytes(key, value)
		count++
		return ctx.Err() == nil
	})
	if err != nil || ctx.Err() != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.changed(bytes-wasBytes, count-wasCount)
	return nil
}

// trim evicts down to the low mark. It reports whether that was possible.
func (l *tagLedger) trim(ctx context.Context) (enough bool, err error) {
	if err := l.recount(ctx); err != nil {
		return false, err
	}
	var goneBytes, goneCount int64
	defer func() {
		if goneCount > 0 {
			l.log.Info("evicted tags", "tags", goneCount, "bytes", goneBytes)
		}
	}()
	for ctx.Err() == nil {
		bytes, count := l.totals()
		take := bytes - share(l.max, tagsLow)
		if take <= 0 || goneCount == 0 && bytes <= share(l.max, tagsHigh) {
			return true, nil
		}
		picked, err := l.pick(ctx, min(take, mostTags*max(1, bytes/max(1, count))))
		if err != nil || len(picked) == 0 {
			return false, err
		}
		before := goneCount
		for len(picked) > 0 && ctx.Err() == nil {
			begun, n := time.Now(), min(step, len(picked))
			bytes, count, err := l.evict(picked[:n])
			if err != nil {
				return false, err
			}
			picked = picked[n:]
			goneBytes, goneCount = goneBytes+bytes, goneCount+count
			l.metrics.evictedTags.Add(float64(count))
			l.breathe(ctx, begun)
		}
		if goneCount == before {
			break // all have been checked since
		}
	}
	return false, ctx.Err()
}

// breathe rests after a step, unless records wait for room.
func (l *tagLedger) breathe(ctx context.Context, begun time.Time) {
	if bytes, _ := l.totals(); bytes <= share(l.max, tagsHigh) {
		l.rest(ctx, time.Since(begun))
	}
}

// tagVictim is a record that may be evicted.
type tagVictim struct {
	key     string
	checked int64 // Unix nanoseconds
	bytes   int64
}

// cell is the records that are worth the same but for their age.
type cell struct {
	kept  bool   // what it points to
	group string // the registry; "": one that a client has named
}

// pick returns the least useful records that take so many bytes.
func (l *tagLedger) pick(ctx context.Context, take int64) ([]tagVictim, error) {
	sizes := map[cell]int64{}
	err := l.each(ctx, func(c cell, key, value []byte, _ Tag) { sizes[c] += tagBytes(key, value) })
	if err != nil {
		return nil, err
	}
	oldest := map[cell]*oldestTags{}
	for c, bytes := range parts(sizes, take) {
		oldest[c] = &oldestTags{want: bytes}
	}
	err = l.each(ctx, func(c cell, key, value []byte, t Tag) {
		if o := oldest[c]; o != nil {
			o.offer(key, t.Checked.UnixNano(), tagBytes(key, value))
		}
	})
	var picked []tagVictim
	for _, o := range oldest {
		picked = append(picked, o.list...)
	}
	return picked, err
}

// parts is how much goes of each cell for take bytes in all: of what nothing is kept of
// first, and there of the registries that have more than any other would be left.
func parts(sizes map[cell]int64, take int64) map[cell]int64 {
	goes := map[cell]int64{}
	for _, kept := range []bool{false, true} {
		var most int64
		for c, size := range sizes {
			if c.kept == kept {
				most = max(most, size)
			}
		}
		above := func(level int64) (sum int64) {
			for c, size := range sizes {
				if c.kept == kept {
					sum += max(0, size-level)
				}
			}
			return sum
		}
		if take <= 0 {
			break
		}
		level := max(0, int64(sort.Search(int(most)+1, func(level int) bool { return above(int64(level)) < take }))-1)
		for c, size := range sizes {
			if c.kept == kept && size > level {
				goes[c] = size - level
			}
		}
		take -= above(level)
	}
	return goes
}

// each calls visit for every record that may go, in steps. What visit is given is its
// own only during the call.
func (l *tagLedger) each(ctx context.Context, visit func(c cell, key, value []byte, t Tag)) error {
	begun, seen := time.Now(), 0
	var last TagKey // of which the next two are
	var pinned bool
	var group string
	err := l.index.scan([]byte{'t'}, func(key, value []byte) bool {
		if seen++; seen >= step {
			l.breathe(ctx, begun)
			begun, seen = time.Now(), 0
		}
		k, err := decodeTagKey(key)
		t, terr := decodeTag(value)
		if err != nil || terr != nil {
			return ctx.Err() == nil
		}
		if k.Upstream != last.Upstream || k.Repository != last.Repository {
			last, pinned, group = k, l.pinned(k.Upstream, k.Repository), l.group(k.Upstream)
		}
		if !pinned {
			// A read that is no use: it must not displace what clients use from the cache.
			_, kept, lerr := l.index.read(linkKey(Scope{Upstream: k.Upstream, Repository: k.Repository, Manifest: !k.IsList()}, t.Digest))
			visit(cell{kept || lerr != nil, group}, key, value, t)
		}
		return ctx.Err() == nil
	})
	return errors.Join(err, ctx.Err())
}

func (l *tagLedger) group(upstream string) string {
	if listed := l.listed.Load(); listed != nil && !(*listed)(upstream) {
		return ""
	}
	return upstream
}

// evict forgets those that have not been checked since they were picked.
func (l *tagLedger) evict(picked []tagVictim) (bytes, count int64, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	var gone [][]byte
	for _, v := range picked {
		key := []byte(v.key)
		e, ok, err := l.index.read(key)
		if err != nil {
			return 0, 0, err
		}
		if t, err := decodeTag(e.value); ok && err == nil && t.Checked.UnixNano() == v.checked {
			gone = append(gone, key)
			bytes += tagBytes(key, e.value)
		}
	}
	if err := l.index.removeAll(gone); err != nil {
		return 0, 0, err
	}
	l.changed(-bytes, -int64(len(gone)))
	return bytes, int64(len(gone)), nil
}

// oldestTags are the least recently checked of those offered that take want bytes: a
// heap with the most recent on top.
type oldestTags struct {
	want, sum int64
	list      []tagVictim
}

func (o *oldestTags) offer(key []byte, checked, bytes int64) {
	if o.sum >= o.want && checked >= o.list[0].checked {
		return
	}
	heap.Push(o, tagVictim{string(key), checked, bytes})
	for o.sum += bytes; o.sum-o.list[0].bytes >= o.want; {
		o.sum -= heap.Pop(o).(tagVictim).bytes
	}
}

func (o *oldestTags) Len() int           { return len(o.list) }
func (o *oldestTags) Less(i, j int) bool { return o.list[i].checked > o.list[j].checked }
func (o *oldestTags) Swap(i, j int)      { o.list[i], o.list[j] = o.list[j], o.list[i] }
func (o *oldestTags) Push(v any)         { o.list = append(o.list, v.(tagVictim)) }
func (o *oldestTags) Pop() any {
	v := o.list[len(o.list)-1]
	o.list = o.list[:len(o.list)-1]
	return v
}
