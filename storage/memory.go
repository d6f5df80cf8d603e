package storage

import (
	"sync"

	"github.com/hashicorp/golang-lru/v2/simplelru"
	"github.com/opencontainers/go-digest"
)

const (
	// maxRecent bounds the index's entries in memory: 8 MiB with long names.
	maxRecent = 16 << 10
	// maxContent bounds the small content in memory, in bytes.
	maxContent = 16 << 20
)

// recent has entries of the index that were read a moment ago. What is in it is
// what the index has: a write takes out what it changes.
type recent struct {
	mu      sync.Mutex // guards the fields below
	entries *simplelru.LRU[string, entry]
	writes  uint64 // what was read before one is not taken in after it
}

func newRecent() *recent {
	entries, err := simplelru.NewLRU[string, entry](maxRecent, nil)
	if err != nil {
		panic(err) // its size is not positive
	}
	return &recent{entries: entries}
}

// get returns an entry, or what add wants to be told of one that is read now.
func (r *recent) get(key []byte) (e entry, ok bool, writes uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	e, ok = r.entries.Get(string(key))
	return e, ok, r.writes
}

// add takes an entry in, unless there was a write since it was looked for.
func (r *recent) add(key []byte, e entry, writes uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.writes == writes {
		r.entries.Add(string(key), e)
	}
}

// changed is called when what was written can be read.
func (r *recent) changed(entries map[string]entry) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.writes++
	for key := range entries {
		r.entries.Remove(key)
	}
}

// memory has small blobs that were read a moment ago: manifests, which every
// pull asks for, in the first place. They have been compared with their digests.
// It is guarded by Store.mu.
type memory struct {
	blobs *simplelru.LRU[digest.Digest, []byte]
	bytes int
}

func newMemory() *memory {
	c := &memory{}
	var err error
	c.blobs, err = simplelru.NewLRU(maxContent, func(_ digest.Digest, b []byte) { c.bytes -= len(b) })
	if err != nil {
		panic(err) // its size is not positive
	}
	return c
}

func (c *memory) get(d digest.Digest) ([]byte, bool) { return c.blobs.Get(d) }

func (c *memory) add(d digest.Digest, b []byte) {
	c.remove(d)
	c.blobs.Add(d, b)
	for c.bytes += len(b); c.bytes > maxContent; {
		c.blobs.RemoveOldest()
	}
}

func (c *memory) remove(d digest.Digest) { c.blobs.Remove(d) }
