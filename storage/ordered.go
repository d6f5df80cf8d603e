package storage

import (
	"bytes"
	"fmt"
	"iter"
	"runtime"
	"slices"

	"github.com/dgraph-io/badger/v4"
	"github.com/opencontainers/go-digest"
)

// ordered walks what comes after a key, in the order of keys, so that a look at
// it can end and go on another time. What it yields is its own only until the next
// one; failed is set where not all could be read.
func (v view) ordered(after []byte, failed *error) iter.Seq2[[]byte, []byte] {
	return func(yield func(key, value []byte) bool) {
		var waiting []string // deleted ones too, for they hide what the database has
		for key := range v.waiting {
			if key > string(after) {
				waiting = append(waiting, key)
			}
		}
		slices.Sort(waiting)
		// pending yields what waits before a key, and says whether to go on.
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
				continue // it comes with what waits
			}
			if err := item.Value(read); err != nil {
				*failed = fmt.Errorf("read index: %w", err)
				return
			}
			if !yield(item.Key(), value) { // both are good until Next
				return
			}
		}
		pending(nil)
	}
}

// linkAt is a link's key, read; its parts are those of the key.
type linkAt struct {
	digest   []byte
	name     []byte // upstream NUL repository
	manifest bool
}

// decodeLinkKey reads what linkKey writes.
func decodeLinkKey(key []byte) (l linkAt, ok bool) {
	d, rest, found := cutDigest(key[1:])
	if !found || len(rest) < 1 {
		return linkAt{}, false
	}
	return linkAt{d, rest[1:], rest[0] == 'm'}, bytes.IndexByte(rest, 0) > 0
}

func (l linkAt) upstream() []byte {
	upstream, _, _ := bytes.Cut(l.name, []byte{0})
	return upstream
}

func (l linkAt) repository() []byte {
	_, repository, _ := bytes.Cut(l.name, []byte{0})
	return repository
}

// in says whether the link is of an upstream and repository; "": of any.
func (l linkAt) in(upstream, repository string) bool {
	return (upstream == "" || upstream == string(l.upstream())) && (repository == "" || repository == string(l.repository()))
}

// afterLinks comes after all links of a digest, and before those of the next.
func afterLinks(d digest.Digest) []byte { return append(linkPrefix(d), 0xff) }

// afterBlob is where a walk of records goes on after a digest; "" is its start.
func afterBlob(d digest.Digest) []byte { return blobKey(d) }

// decodeBlobKey reads what blobKey writes.
func decodeBlobKey(key []byte) (d []byte, ok bool) { return unpack(nil, key[1:]) }
