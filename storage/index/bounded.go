package index

import (
	"context"
	"errors"
	"sort"
	"sync"
	"time"
)

// boundedRecords counts the index's records of a kind (tags, links) and their bytes, and
// bounds the bytes: clients and registries can add any number. Above recordsHigh percent of
// the bound, records are evicted in the background, down to recordsLow percent. A new record
// above the bound is not written; its registry is asked again when it is needed.
//
// pick decides which records are evicted first. The registries with the most records lose
// some, so that no registry pushes out the records of another one; all registries that are not
// in the configuration count as one.
type boundedRecords struct {
	index   *Index
	kind    byte                                                          // the first of their keys' bytes: see [format]
	name    string                                                        // in the log
	max     int64                                                         // bytes; 0: no bound
	wanted  chan struct{}                                                 // has a value when there is something to trim
	rest    func(ctx context.Context, took time.Duration)                 // between steps
	pick    func(ctx context.Context, take int64) ([]recordVictim, error) // returns the least useful records, of so many bytes
	changed func(bytes, count int64)                                      // is called with the new sums
	gone    func(count int64)                                             // is called after evictions

	recounting sync.Mutex // held while the records are added up: two recounts at once would count them twice; mu is taken under it

	mu    sync.Mutex // guards the fields below, and that they agree with the records; the Index's locks are taken under it
	bytes int64      // until the records are added up: changes since then
	count int64
}

const (
	// An eviction scans all records twice, which takes 8 s of a processor with a million
	// of them. So it evicts a tenth at a time: 0.1 ms for each record.
	recordsHigh, recordsLow = 98, 88
	// mostRecords bounds how many records are picked at once, and so their memory to 30 MiB.
	mostRecords = 1 << 17
	// recordOverhead is the bytes that badger adds to a key and its value: lengths, a
	// version and the time of expiry.
	recordOverhead = 16
	// recountEvery is how often records are added up again: badger drops expired records
	// without a notice, and links are removed with their blobs.
	recountEvery = 24 * time.Hour
	// step is how many records are scanned, or evicted, before a rest.
	step = 128
	// nothingMore is how long to wait after a scan that found too few records to evict.
	nothingMore = 10 * time.Second
)

func recordBytes(key, value []byte) int64 { return int64(len(key)+len(value)) + recordOverhead }

// put writes a record, which expires after keep; 0: never. It returns false if there is no
// space for a new one.
func (l *boundedRecords) put(key, value []byte, keep time.Duration) (bool, error) {
	bytes := recordBytes(key, value)
	l.mu.Lock()
	defer l.mu.Unlock()
	var before int64
	known, err := l.index.get(key, func(b []byte) error { before = recordBytes(key, b); return nil })
	switch {
	case err != nil:
		return false, err
	case !known && l.max > 0 && l.bytes+bytes > l.max:
		l.trimSoon()
		return false, nil
	}
	if err := l.index.put(key, value, keep); err != nil {
		return false, err
	}
	if known {
		l.add(bytes-before, 0)
	} else {
		l.add(bytes, 1)
	}
	return true, nil
}

// remove removes records; it skips keys that have none.
func (l *boundedRecords) remove(keys ...[]byte) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	var bytes, count int64
	for _, key := range keys {
		known, err := l.index.get(key, func(b []byte) error { bytes += recordBytes(key, b); return nil })
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
	l.add(-bytes, -count)
	return nil
}

// add adds to the sums; l.mu is held.
func (l *boundedRecords) add(bytes, count int64) {
	l.bytes += bytes
	l.count += count
	l.changed(l.bytes, l.count)
	if l.max > 0 && l.bytes > l.high() {
		l.trimSoon()
	}
}

func (l *boundedRecords) trimSoon() {
	select {
	case l.wanted <- struct{}{}:
	default:
	}
}

func (l *boundedRecords) totals() (bytes, count int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.bytes, l.count
}

// run trims whenever the records are above the high mark, until ctx ends.
func (l *boundedRecords) run(ctx context.Context) {
	again := time.NewTicker(recountEvery)
	defer again.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-again.C:
			if err := l.recount(ctx); err != nil {
				l.index.log.Error("cannot count index records", "records", l.name, "error", err)
			}
			continue
		case <-l.wanted:
		}
		switch enough, err := l.trim(ctx); {
		case enough || ctx.Err() != nil:
			continue
		case err != nil:
			l.index.log.Error("cannot evict index records", "records", l.name, "error", err)
		default:
			l.index.log.Warn("index full: all records are pinned, and new ones are not stored; raise storage.max_index, or unpin repositories", "records", l.name)
		}
		select { // another scan at once would find no more
		case <-time.After(nothingMore):
		case <-ctx.Done():
		}
	}
}

// recount adds up the records as they are when it begins, and corrects the sums. Changes
// during the scan are counted as they happen.
func (l *boundedRecords) recount(ctx context.Context) error {
	l.recounting.Lock()
	defer l.recounting.Unlock()
	l.mu.Lock()
	wasBytes, wasCount := l.bytes, l.count
	then := l.index.view([]byte{l.kind})
	l.mu.Unlock()
	defer then.close()
	var bytes, count int64
	err := then.scan(func(key, value []byte) bool {
		bytes += recordBytes(key, value)
		count++
		return ctx.Err() == nil
	})
	if err != nil || ctx.Err() != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.add(bytes-wasBytes, count-wasCount)
	return nil
}

// trim evicts down to the low mark. It reports whether that was possible.
func (l *boundedRecords) trim(ctx context.Context) (enough bool, err error) {
	if err := l.recount(ctx); err != nil {
		return false, err
	}
	var goneBytes, goneCount int64
	defer func() {
		if goneCount > 0 {
			l.index.log.Info("evicted index records", "records", l.name, "count", goneCount, "bytes", goneBytes)
		}
	}()
	for ctx.Err() == nil {
		bytes, count := l.totals()
		take := bytes - l.low()
		if take <= 0 || goneCount == 0 && bytes <= l.high() {
			return true, nil
		}
		picked, err := l.pick(ctx, min(take, mostRecords*max(1, bytes/max(1, count))))
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
			l.gone(count)
			l.breathe(ctx, begun)
		}
		if goneCount == before {
			break // all picked records have changed since
		}
	}
	return false, ctx.Err()
}

// high and low are the marks in bytes: above high, records are evicted down to low.
func (l *boundedRecords) high() int64 { return l.max * recordsHigh / 100 }
func (l *boundedRecords) low() int64  { return l.max * recordsLow / 100 }

// breathe rests after a step, unless the records are above the high mark.
func (l *boundedRecords) breathe(ctx context.Context, begun time.Time) {
	if bytes, _ := l.totals(); bytes <= l.high() {
		l.rest(ctx, time.Since(begun))
	}
}

// recordVictim is a record that may be evicted.
type recordVictim struct{ key, value string }

func newVictim(key, value []byte) recordVictim { return recordVictim{string(key), string(value)} }

func (v recordVictim) bytes() int64 { return recordBytes([]byte(v.key), []byte(v.value)) }

// evict removes those picked records that have not changed since.
func (l *boundedRecords) evict(picked []recordVictim) (bytes, count int64, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	var gone [][]byte
	for _, v := range picked {
		key := []byte(v.key)
		e, ok, err := l.index.read(key)
		if err != nil {
			return 0, 0, err
		}
		if ok && string(e.value) == v.value {
			gone = append(gone, key)
			bytes += v.bytes()
		}
	}
	if err := l.index.removeAll(gone); err != nil {
		return 0, 0, err
	}
	l.add(-bytes, -int64(len(gone)))
	return bytes, int64(len(gone)), nil
}

// each calls visit for each record, in steps. key and value are valid only during the call.
func (l *boundedRecords) each(ctx context.Context, visit func(key, value []byte)) error {
	begun, seen := time.Now(), 0
	err := l.index.scan([]byte{l.kind}, func(key, value []byte) bool {
		if seen++; seen >= step {
			l.breathe(ctx, begun)
			begun, seen = time.Now(), 0
		}
		visit(key, value)
		return ctx.Err() == nil
	})
	return errors.Join(err, ctx.Err())
}

// cell is a group of records that differ in value only by their age.
type cell struct {
	kept  bool   // evicted after all that are not
	group string // the registry; "": all that are not in the configuration
}

// parts returns how many bytes of each cell to evict, for take bytes in all. Cells that are
// not kept lose bytes first. Among them the largest are cut down to one common size.
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
