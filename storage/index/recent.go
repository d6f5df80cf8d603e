package index

import (
	"sync"

	"github.com/hashicorp/golang-lru/v2/simplelru"
)

// maxRecent bounds the index's entries in memory: 8 MiB with long names.
const maxRecent = 16 << 10

// recent has the entries of the index that were read last. They agree with the index: a
// write removes the entries that it changes.
type recent struct {
	mu      sync.Mutex // guards the fields below; no lock is taken under it
	entries *simplelru.LRU[string, entry]
	writes  uint64 // an entry that was read before a write is not added after it
}

func newRecent() *recent {
	entries, err := simplelru.NewLRU[string, entry](maxRecent, nil)
	if err != nil {
		panic(err) // its size is not positive
	}
	return &recent{entries: entries}
}

// get returns an entry. If there is none, writes is for the add of the entry that is read
// next.
func (r *recent) get(key []byte) (e entry, ok bool, writes uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	e, ok = r.entries.Get(string(key))
	return e, ok, r.writes
}

// add adds an entry, unless there was a write since get.
func (r *recent) add(key []byte, e entry, writes uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.writes == writes {
		r.entries.Add(string(key), e)
	}
}

// changed removes entries that were written. It is called when readers see the new values.
func (r *recent) changed(entries map[string]entry) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.writes++
	for key := range entries {
		r.entries.Remove(key)
	}
}

// Writes returns how many times the index was written to since it was opened.
func (x *Index) Writes() uint64 {
	x.recent.mu.Lock()
	defer x.recent.mu.Unlock()
	return x.recent.writes
}
