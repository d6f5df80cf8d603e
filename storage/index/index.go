package index

import (
	"context"
	"errors"
	"log/slog"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/dgraph-io/badger/v4"

	"github.com/cachalot-registry/cachalot/task"
)

// Config of an [Index].
type Config struct {
	Dir string // of the database; created if missing
	// Max bounds the bytes of tags and lists, and the bytes of links; 0: no bound.
	Max int64
	// Pinned says whose tags and links are not evicted for Max.
	Pinned func(upstream, repository string) bool
	// Rest waits after a step of background work that took so long.
	Rest func(ctx context.Context, took time.Duration)
}

// Index is the database, and the changes that wait to be written to it. All methods may be
// called at any time from any goroutine, until Close.
type Index struct {
	dir string
	log *slog.Logger
	db  atomic.Pointer[badger.DB] // nil until the disk has space to open it; then it stays

	survived *time.Timer  // calls confirmOpened; set by open before db
	resting  *time.Timer  // gives memory back; set by worked
	work     atomic.Int64 // keys counted by worked since it set resting

	writing sync.Mutex // held while entries are added to waiting or written to db; guards wal
	wal     int        // the newest of badger's logs whose blocks are all allocated

	mu      sync.RWMutex     // guards waiting; taken under writing, never the other way round
	waiting map[string]entry // newer than what db has
	waits   atomic.Int64     // len(waiting); readers need no lock while it is 0

	recent *recent // links and tags; not records, which are seldom read twice

	links *linkLedger
	tags  *tagLedger
}

// Open opens the index. If the database cannot be opened now, [Index.Maintain] does it later.
func Open(cfg Config, m *Metrics, log *slog.Logger) *Index {
	x := &Index{dir: cfg.Dir, log: log, waiting: map[string]entry{}, recent: newRecent()}
	x.tags = newTagLedger(x, cfg, m)
	x.links = newLinkLedger(x, cfg)
	x.resting = time.AfterFunc(atRest, task.Guard("release of memory", debug.FreeOSMemory))
	x.resting.Stop()
	x.open()
	return x
}

// Run keeps tags and links within their bounds until ctx ends.
func (x *Index) Run(ctx context.Context) {
	var running sync.WaitGroup
	running.Go(task.Keep(ctx, "eviction of tags", func() { x.tags.run(ctx) }))
	running.Go(task.Keep(ctx, "eviction of links", func() { x.links.run(ctx) }))
	running.Wait()
}

// Recount adds up the bytes of tags and links, after Open. When it has read the tags it
// confirms the opening: the database does not kill the process.
func (x *Index) Recount(ctx context.Context) {
	if err := x.tags.recount(ctx); err != nil {
		x.log.Error("cannot count tags in the index", "error", err)
	}
	x.confirmOpened()
	if err := x.links.recount(ctx); err != nil {
		x.log.Error("cannot count links in the index", "error", err)
	}
}

// Waiting returns how many changes wait in memory for disk space.
func (x *Index) Waiting() int64 { return x.waits.Load() }

// entry is a value that waits to be written.
type entry struct {
	value   []byte
	expires uint64 // Unix seconds; 0: never
	deleted bool
}

// get reads one key; a missing key is (false, nil).
func (x *Index) get(key []byte, read func([]byte) error) (bool, error) {
	keep := key[0] != 'b'
	var writes uint64
	if keep {
		var e entry
		var ok bool
		if e, ok, writes = x.recent.get(key); ok && e.alive() {
			err := read(e.value)
			return err == nil, err
		}
	}
	e, ok, err := x.read(key)
	if !ok || err != nil {
		return false, err
	}
	if keep {
		x.recent.add(key, e, writes)
	}
	err = read(e.value)
	return err == nil, err
}

// read is get, without recent: from the waiting changes or the database.
func (x *Index) read(key []byte) (e entry, ok bool, err error) {
	if e, ok := x.waitingFor(key); ok {
		return e, e.alive(), nil
	}
	db := x.db.Load()
	if db == nil {
		return entry{}, false, nil
	}
	err = db.View(func(txn *badger.Txn) error {
		item, err := txn.Get(key)
		if err != nil {
			return err
		}
		e.expires = item.ExpiresAt()
		e.value, err = item.ValueCopy(nil)
		return err
	})
	if errors.Is(err, badger.ErrKeyNotFound) {
		return entry{}, false, nil
	}
	return e, err == nil, err
}

// put writes one key; with keep > 0 it expires after so long.
func (x *Index) put(key, value []byte, keep time.Duration) error {
	e := entry{value: slices.Clone(value)}
	if keep > 0 {
		e.expires = uint64(time.Now().Add(keep).Unix())
	}
	return x.write(map[string]entry{string(key): e})
}

// remove removes one key.
func (x *Index) remove(key []byte) error {
	return x.write(map[string]entry{string(key): {deleted: true}})
}

// removeAll removes keys.
func (x *Index) removeAll(keys [][]byte) error {
	gone := make(map[string]entry, len(keys))
	for _, key := range keys {
		gone[string(key)] = entry{deleted: true}
	}
	return x.write(gone)
}
