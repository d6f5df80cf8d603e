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
	// Max bounds what tags take of the index, and what links do, in bytes; 0: nothing does.
	Max int64
	// Pinned says which repositories keep their tags and links whatever Max says.
	Pinned func(upstream, repository string) bool
	// Rest waits after a step of work in the background, which took so long.
	Rest func(ctx context.Context, took time.Duration)
}

// Index is the database, and what waits to be written to it. All methods may be called
// at any time from any goroutine, until Close.
type Index struct {
	dir string
	log *slog.Logger
	db  atomic.Pointer[badger.DB] // nil until the disk has room to open it; then it stays

	survived *time.Timer  // calls confirmOpened; set by open before db
	resting  *time.Timer  // gives memory back; set by worked
	work     atomic.Int64 // what worked was told since it set resting

	writing sync.Mutex // held while entries are taken in or written to db; guards wal
	wal     int        // the newest of badger's logs whose blocks are all allocated

	mu      sync.RWMutex     // guards waiting; taken under writing, never the other way round
	waiting map[string]entry // newer than what db has
	waits   atomic.Int64     // len(waiting), for those who read and need no lock where it is 0

	recent *recent // links and tags; records are read once and written

	links *linkLedger
	tags  *tagLedger
}

// Open opens the index as far as that is possible now: see [Index.Maintain].
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

// Recount adds up what tags and links take of the index, once it has been opened. A
// database of which so much could be read does not kill the process.
func (x *Index) Recount(ctx context.Context) {
	if err := x.tags.recount(ctx); err != nil {
		x.log.Error("cannot count tags in the index", "error", err)
	}
	x.confirmOpened()
	if err := x.links.recount(ctx); err != nil {
		x.log.Error("cannot count links in the index", "error", err)
	}
}

// Waiting is how many changes wait in memory for room on the disk.
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

// read is get, from what waits or the database.
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

// put writes one key; keep > 0 forgets it after so long.
func (x *Index) put(key, value []byte, keep time.Duration) error {
	e := entry{value: slices.Clone(value)}
	if keep > 0 {
		e.expires = uint64(time.Now().Add(keep).Unix())
	}
	return x.write(map[string]entry{string(key): e})
}

// remove forgets one key.
func (x *Index) remove(key []byte) error {
	return x.write(map[string]entry{string(key): {deleted: true}})
}

// removeAll forgets keys.
func (x *Index) removeAll(keys [][]byte) error {
	gone := make(map[string]entry, len(keys))
	for _, key := range keys {
		gone[string(key)] = entry{deleted: true}
	}
	return x.write(gone)
}
