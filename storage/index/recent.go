package index

import (
	"sync"

	"github.com/hashicorp/golang-lru/v2/simplelru"
)

// maxRecent bounds the index's entries in memory: 8 MiB with long names.
const maxRecent = 16 << 10

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

// Writes is how many times the index was written to since it was opened.
func (x *Index) Writes() uint64 {
	x.recent.mu.Lock()
	defer x.recent.mu.Unlock()
	return x.recent.writes
}
