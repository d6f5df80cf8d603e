package storage

import (
	"errors"
	"log/slog"
	"math"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/dgraph-io/badger/v4"
	"github.com/opencontainers/go-digest"
)

// Scope is a place in which a digest was seen. With the digest it names a Link.
type Scope struct {
	Upstream   string
	Repository string
	// Manifest tells a digest seen under /manifests/ from one seen under
	// /blobs/, so that a layer can never be read as a manifest.
	Manifest bool
	// Keep is how content that is asked for here is kept. It is no part of the place.
	Keep Retention
	// Client is the address of the client that asks, for its fair share of downloads; "":
	// none does. It is no part of the place.
	Client string
}

// place is the scope less its Keep and Client.
func (s Scope) place() Scope {
	s.Keep, s.Client = Retention{}, ""
	return s
}

// TagKey names the only mutable thing: a tag, or a list kept like one (its Name
// then has a slash, which no tag has).
type TagKey struct {
	Upstream   string
	Repository string
	Name       string
}

// Tag points to a digest, as an upstream last said at Checked.
type Tag struct {
	Digest  digest.Digest
	Checked time.Time
}

// record is what the index knows of a blob on disk.
type record struct {
	size     int64
	accessed int64 // Unix seconds
	until    int64 // Unix seconds; 0: no limit
	manifest bool
	orphaned bool   // nothing points to it any more
	again    bool   // used again, correlationWindow or more after another use
	uses     uint32 // answers from the kept blob, as far as they were written
}

// block is what a disk gives a file at a time: 4 KiB with nearly all file systems.
const block = 4 << 10

// blocks is what a file of size bytes takes of the disk.
func blocks(size int64) int64 { return (size + block - 1) / block * block }

// diskBytes is what the blob takes of the disk.
func (r record) diskBytes() int64 { return blocks(r.size) }

// expires is when the record's limit has passed, in Unix seconds.
func (r record) expires() int64 {
	if r.until == 0 {
		return math.MaxInt64
	}
	return r.until
}

// index is what the disk cannot say of its blobs: a badger database, and what
// waits to be written to it. format.go has its keys and values.
type index struct {
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
}

// entry is a value that waits to be written.
type entry struct {
	value   []byte
	expires uint64 // Unix seconds; 0: never
	deleted bool
}

// scanStep is after how many keys a scan lets others go first: less than 0.1 ms.
const scanStep = 64

// get reads one key; a missing key is (false, nil).
func (x *index) get(key []byte, read func([]byte) error) (bool, error) {
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
func (x *index) read(key []byte) (e entry, ok bool, err error) {
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
func (x *index) put(key, value []byte, keep time.Duration) error {
	e := entry{value: slices.Clone(value)}
	if keep > 0 {
		e.expires = uint64(time.Now().Add(keep).Unix())
	}
	return x.write(map[string]entry{string(key): e})
}

// remove forgets one key.
func (x *index) remove(key []byte) error {
	return x.write(map[string]entry{string(key): {deleted: true}})
}

// record returns what is known of a blob. One that cannot be decoded is as good
// as none: the walk of the disk writes it anew.
func (x *index) record(d digest.Digest) (r record, ok bool, err error) {
	_, err = x.get(blobKey(d), func(b []byte) error {
		var derr error
		r, derr = decodeRecord(b)
		ok = derr == nil
		return nil
	})
	return r, ok, err
}

// putRecords writes the records of many blobs at once.
func (x *index) putRecords(records map[digest.Digest]record) error {
	entries := make(map[string]entry, len(records))
	for d, r := range records {
		entries[string(blobKey(d))] = entry{value: r.encode()}
	}
	return x.write(entries)
}

// records calls visit for every blob whose digest begins with prefix (an
// algorithm, a colon and an even number of digits, or nothing), until it returns
// false. The digest is its own only during the call. Records that cannot be read
// are passed over.
func (x *index) records(prefix string, visit func(d []byte, r record) bool) error {
	key := []byte{'b'}
	if prefix != "" {
		key = pack(key, digest.Digest(prefix))
	}
	v := x.view(key)
	defer v.close()
	return v.records(visit)
}

// scan calls visit for every key that begins with prefix until it returns
// false. What it is given is its own only during the call.
func (x *index) scan(prefix []byte, visit func(key, value []byte) bool) error {
	v := x.view(prefix)
	defer v.close()
	return v.scan(visit)
}

// view is what begins with prefix in the index at one moment. Close it.
type view struct {
	index   *index
	prefix  []byte
	waiting map[string]entry
	txn     *badger.Txn // nil without a database
}

// view takes what waits first: what is written meanwhile is in both, not in none.
func (x *index) view(prefix []byte) view {
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

func (v view) records(visit func(d []byte, r record) bool) error {
	var d []byte
	return v.scan(func(key, value []byte) bool {
		r, err := decodeRecord(value)
		if err != nil || len(key) < 1 {
			return true
		}
		var ok bool
		d, ok = unpack(d[:0], key[1:])
		return !ok || visit(d, r)
	})
}

// forget removes a blob's record and its links. Where there are none it writes
// nothing.
func (x *index) forget(d digest.Digest) error {
	gone := map[string]entry{}
	recorded, err := x.get(blobKey(d), func([]byte) error { return nil })
	if recorded {
		gone[string(blobKey(d))] = entry{deleted: true}
	}
	err = errors.Join(err, x.scan(linkPrefix(d), func(key, _ []byte) bool {
		gone[string(key)] = entry{deleted: true}
		return true
	}))
	if err != nil || len(gone) == 0 {
		return err
	}
	return x.write(gone)
}
