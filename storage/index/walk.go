package index

import (
	"bytes"
	"fmt"
	"iter"
	"runtime"
	"slices"

	"github.com/dgraph-io/badger/v4"
	"github.com/opencontainers/go-digest"
)

// scanStep is after how many keys a scan yields the processor: less than 0.1 ms.
const scanStep = 64

// scan calls visit for each key that begins with prefix, until visit returns false. key and
// value are valid only during the call.
func (x *Index) scan(prefix []byte, visit func(key, value []byte) bool) error {
	v := x.view(prefix)
	defer v.close()
	return v.scan(visit)
}

// view is the entries whose keys begin with prefix, at one moment. Close it.
type view struct {
	index   *Index
	prefix  []byte
	waiting map[string]entry
	txn     *badger.Txn // nil without a database
}

// view takes the waiting entries before the transaction: an entry that is written in
// between is in both, and not in neither.
func (x *Index) view(prefix []byte) view {
	v := view{index: x, prefix: prefix, waiting: x.waitingWith(prefix)}
	if db := x.db.Load(); db != nil {
		v.txn = db.NewTransaction(false)
	}
	return v
}

func (v view) close() {
	if v.txn != nil {
		v.txn.Discard()
	}
}

func (v view) scan(visit func(key, value []byte) bool) error {
	for key, e := range v.waiting {
		if e.alive() && !visit([]byte(key), e.value) {
			return nil
		}
	}
	if v.txn == nil {
		return nil
	}
	o := badger.DefaultIteratorOptions
	o.Prefix, o.PrefetchValues = v.prefix, false // values stand beside their keys
	it := v.txn.NewIterator(o)
	defer it.Close()
	more, seen := true, 0
	defer func() { v.index.worked(seen) }()
	for it.Rewind(); it.Valid() && more; it.Next() {
		if seen++; seen%scanStep == 0 {
			runtime.Gosched() // clients first
		}
		item := it.Item()
		if _, newer := v.waiting[string(item.Key())]; newer {
			continue
		}
		if err := item.Value(func(b []byte) error { more = visit(item.Key(), b); return nil }); err != nil {
			return err
		}
	}
	return nil
}

// ordered walks the entries after a key, in the order of keys, so that a walk can stop and
// be continued later. What it yields is valid only until the next entry. It sets failed if
// not all entries could be read.
func (v view) ordered(after []byte, failed *error) iter.Seq2[[]byte, []byte] {
	return func(yield func(key, value []byte) bool) {
		var waiting []string // deleted ones too: they hide the database's entries
		for key := range v.waiting {
			if key > string(after) {
				waiting = append(waiting, key)
			}
		}
		slices.Sort(waiting)
		// pending yields the waiting entries before a key, and reports whether to continue.
		pending := func(key []byte) bool {
			for len(waiting) > 0 && (key == nil || waiting[0] < string(key)) {
				next := waiting[0]
				waiting = waiting[1:]
				if e := v.waiting[next]; e.alive() && !yield([]byte(next), e.value) {
					return false
				}
			}
			return true
		}
		if v.txn == nil {
			pending(nil)
			return
		}
		o := badger.DefaultIteratorOptions
		o.Prefix, o.PrefetchValues = v.prefix, false // values stand beside their keys
		it := v.txn.NewIterator(o)
		defer it.Close()
		seen := 0
		var value []byte
		read := func(b []byte) error { value = b; return nil }
		for it.Seek(append(slices.Clone(after), 0)); it.Valid(); it.Next() {
			if seen++; seen%scanStep == 0 {
				runtime.Gosched() // clients first
			}
			item := it.Item()
			if !pending(item.Key()) {
				return
			}
			if _, newer := v.waiting[string(item.Key())]; newer {
				continue // pending yields it
			}
			if err := item.Value(read); err != nil {
				*failed = fmt.Errorf("read index: %w", err)
				return
			}
			if !yield(item.Key(), value) { // both are valid until Next
				return
			}
		}
		pending(nil)
	}
}

// Digests walks the recorded digests after a digest, in their order; "": all. An error
// ends the walk.
func (x *Index) Digests(after digest.Digest) iter.Seq2[digest.Digest, error] {
	return func(yield func(digest.Digest, error) bool) {
		var failed error
		v := x.view([]byte{'b'})
		defer v.close()
		for key := range v.ordered(blobKey(after), &failed) {
			if d, err := decodeDigest(key[1:]); err == nil && !yield(d, nil) {
				return
			}
		}
		if failed != nil {
			yield("", failed)
		}
	}
}

// LinkedDigests is [Index.Digests] of those that have a link from a repository of an
// upstream; "": from any.
func (x *Index) LinkedDigests(upstream, repository string, after digest.Digest) iter.Seq2[digest.Digest, error] {
	return func(yield func(digest.Digest, error) bool) {
		from := []byte{'l'}
		if after != "" { // after all its links
			from = append(linkPrefix(after), 0xff)
		}
		var failed error
		v := x.view([]byte{'l'})
		defer v.close()
		var last []byte
		for key, value := range v.ordered(from, &failed) {
			at, ok := decodeLinkAt(key, value)
			if !ok || !at.In(upstream, repository) || bytes.Equal(at.packed, last) {
				continue
			}
			last = append(last[:0], at.packed...)
			if !yield(at.Digest(), nil) {
				return
			}
		}
		if failed != nil {
			yield("", failed)
		}
	}
}

// BlobAt is a record with its links, in a walk of all.
type BlobAt struct {
	Record

	packed []byte // the digest
	links  *linkWalk
}

// linkWalk is all links, in the order of digests.
type linkWalk struct {
	next       func() (key, value []byte, more bool)
	key, value []byte
	more       bool
}

func (w *linkWalk) advance() { w.key, w.value, w.more = w.next() }

// Links yields the blob's links, once. Each is valid only until the next.
func (b BlobAt) Links(yield func(LinkAt) bool) {
	for w := b.links; w.more; w.advance() {
		at, ok := decodeLinkAt(w.key, w.value)
		if !ok {
			continue
		}
		order := bytes.Compare(at.packed, b.packed)
		if order > 0 || order == 0 && !yield(at) {
			return // the next blob skips the rest of this blob's links
		}
	}
}

// Blobs walks all records, each with its links. Both are in the order of digests, so one
// scan of each is enough. An error ends the walk.
func (x *Index) Blobs() iter.Seq2[BlobAt, error] {
	return func(yield func(BlobAt, error) bool) {
		var failed error
		records := x.view([]byte{'b'})
		defer records.close()
		links := x.view([]byte{'l'}) // after the records: a link is written after its record
		defer links.close()
		next, stop := iter.Pull2(links.ordered(links.prefix, &failed))
		defer stop()
		walk := &linkWalk{next: next}
		walk.advance()
		for key, value := range records.ordered(records.prefix, &failed) {
			r, err := decodeRecord(value)
			if err == nil && isPacked(key[1:]) && !yield(BlobAt{r, key[1:], walk}, nil) {
				return
			}
		}
		if failed != nil {
			yield(BlobAt{}, failed)
		}
	}
}
