package index

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/dgraph-io/badger/v4"
	"github.com/dgraph-io/badger/v4/options"
	"golang.org/x/sys/unix"

	"github.com/cachalot-registry/cachalot/task"
)

// badger writes through memory maps of sparse files. Where the disk has no
// block for what it writes it gets no error but SIGBUS, mostly in a goroutine
// of its own, and the process ends: nothing can be done about it then. So it is
// written to only while the disk has room for what it may do on that account.
const (
	// Floor is that room: some memtables and what a compaction rewrites.
	Floor = 64 << 20
	// reserveSize is what is kept from others, for badger to open and close
	// with on a disk that is full; some of it is used up then.
	reserveSize = Floor * 3 / 2
	memtable    = 8 << 20
	// batch is how many entries are written at once, and batchBytes how much:
	// less than a transaction takes, and than the half of a log that badger
	// leaves empty.
	batch      = 1000
	batchBytes = 512 << 10
	maxEntry   = 60_000 // badger takes keys up to 65,000 bytes
	// maxWaiting bounds the memory of what waits, at some 300 bytes each.
	maxWaiting = 1 << 19
	// survival is how long a process lives whose index is sound. Whatever kills it
	// later was not the opening, though its records may not all have been read yet:
	// two quick kills in a row must not cost the index of a large cache.
	survival = 3 * time.Second
	// muchWork is how many keys are read by scans, or written, before what that has
	// left in memory is given back, atRest later: badger compacts for some seconds
	// more, and keeps what that took for another 18. Where little is asked for, Go
	// by itself would keep most of it for longer than some minutes.
	muchWork = 10_000
	atRest   = 30 * time.Second
)

// reserve is the name of the file that keeps reserveSize from others.
func (x *Index) reserve() string { return filepath.Join(filepath.Dir(x.dir), "reserve") }

// openingMarker is a file that has a byte for every start that died while it opened badger.
func (x *Index) openingMarker() string { return x.dir + ".opening" }

// free returns the bytes that badger may still write: none on a disk that takes
// no more files, or no writes at all (ext4 turns so when it meets an error), and
// none while the process cannot open one more file, which badger does not survive.
func (x *Index) free() int64 {
	dir := filepath.Dir(x.dir)
	f, err := -1, error(unix.EINTR)
	for errors.Is(err, unix.EINTR) { // as os.Open does
		f, err = unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	}
	if err != nil {
		return 0
	}
	defer func() { _ = unix.Close(f) }()
	// Since Linux 6.16 an ext4 that has met an error does not say that it is
	// read-only: only a write tells.
	now := unix.Timespec{Nsec: unix.UTIME_NOW}
	if err := unix.UtimesNanoAt(unix.AT_FDCWD, dir, []unix.Timespec{now, now}, 0); err != nil {
		return 0
	}
	var fs unix.Statfs_t
	err = unix.Fstatfs(f, &fs)
	if err != nil || fs.Flags&unix.ST_RDONLY != 0 || fs.Files > 0 && fs.Ffree < 100 {
		return 0
	}
	return int64(fs.Bavail) * fs.Bsize
}

// makeRoom gives up the reserve where that is needed, and says whether there is
// room then.
func (x *Index) makeRoom() bool {
	if x.free() < Floor {
		_ = os.Remove(x.reserve()) // it may not be there
	}
	return x.free() >= Floor
}

// KeepReserve makes the reserve, or as much of it as there is, where it is
// missing. It leaves so many bytes to others.
func (x *Index) KeepReserve(leave int64) {
	size := min(reserveSize, x.free()-leave)
	if size < Floor {
		return
	}
	if info, err := os.Stat(x.reserve()); err == nil && info.Size() >= Floor {
		return
	}
	f, err := os.OpenFile(x.reserve(), os.O_CREATE|os.O_WRONLY, 0o600)
	if err == nil {
		err = unix.Fallocate(int(f.Fd()), 0, 0, size)
		_ = f.Close() // nothing was written
	}
	if err != nil { // also a file system that promises no blocks
		x.log.Debug("cannot reserve disk space for the index", "error", err)
		_ = os.Remove(x.reserve())
	}
}

// open opens the database, which confirmOpened confirms. One that cannot be read is
// thrown away, and so is one that two starts have died of. Where the disk has
// no room for it, or it cannot be created, all entries wait, and maintenance
// tries again.
func (x *Index) open() bool {
	if !x.makeRoom() {
		x.log.Warn("disk full; index not opened, changes stay in memory", "dir", x.dir, "free_bytes", x.free())
		return false
	}
	if info, err := os.Stat(x.openingMarker()); err == nil && info.Size() >= 2 {
		x.log.Error("the last two starts died while opening the index; starting an empty index", "dir", x.dir)
		if err := os.RemoveAll(x.dir); err != nil {
			x.log.Error("cannot remove index; changes stay in memory", "error", err)
			return false
		}
	}
	if err := appendByte(x.openingMarker()); err != nil {
		x.log.Error("cannot write the index's opening marker; index not opened, changes stay in memory", "error", err)
		return false
	}
	db, err := openBadger(x.dir, x.log)
	if err != nil {
		x.log.Error("index unreadable; starting an empty index", "dir", x.dir, "error", err)
		if err = os.RemoveAll(x.dir); err == nil {
			db, err = openBadger(x.dir, x.log)
		}
	}
	if err != nil {
		x.log.Error("cannot create index; changes stay in memory", "dir", x.dir, "error", err)
		x.confirmOpened()
		return false
	}
	x.writing.Lock()
	defer x.writing.Unlock()
	x.wal = -1
	x.allocate()
	x.preferRecords(db)
	x.survived = time.AfterFunc(survival, task.Guard("opening of the index", x.confirmOpened))
	x.db.Store(db)
	return true
}

// confirmOpened says that the database has been opened, and the process still runs: all of it
// was read, or the process has lived for long enough.
func (x *Index) confirmOpened() {
	if err := os.Remove(x.openingMarker()); err != nil {
		x.log.Debug("cannot remove the index's opening marker", "error", err)
	}
}

func appendByte(name string) error {
	f, err := os.OpenFile(name, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write([]byte{'x'})
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	return err
}

// openBadger opens a database. It reads all of it first, to find what is damaged
// now and not in the midst of a compaction, and then opens it again: pages that
// were only read for that do not stay in memory. badger dies of some damage, in
// goroutines of its own, where no code can catch that: see openingMarker.
func openBadger(dir string, log *slog.Logger) (*badger.DB, error) {
	o := badger.DefaultOptions(dir).
		WithMemTableSize(memtable).WithNumMemtables(2).
		WithValueLogFileSize(1 << 20). // no value is long enough for it
		WithBlockCacheSize(8 << 20).
		WithNumCompactors(2).WithNumGoroutines(1).
		WithDetectConflicts(false).
		WithMetricsEnabled(false).
		WithExternalMagic(format).
		WithLogger(badgerLog{log})
	if fileExists(filepath.Join(dir, badger.ManifestFilename)) {
		db, err := badger.Open(o.WithNumCompactors(0).WithChecksumVerificationMode(options.OnTableRead))
		if err != nil {
			return nil, fmt.Errorf("read index: %w", err)
		}
		if err := db.Close(); err != nil {
			return nil, fmt.Errorf("read index: %w", err)
		}
	}
	db, err := badger.Open(o)
	if err != nil {
		return nil, fmt.Errorf("open index: %w", err)
	}
	return db, nil
}

// worked is told of the keys that were read by a scan, or written.
func (x *Index) worked(keys int) {
	if x.work.Add(int64(keys)) >= muchWork {
		x.work.Store(0)
		x.resting.Reset(atRest)
	}
}

// badgerLog passes badger's warnings and errors on; the rest is its own business.
type badgerLog struct{ log *slog.Logger }

func (b badgerLog) Errorf(f string, a ...any) {
	b.log.Error("index", "detail", strings.TrimSpace(fmt.Sprintf(f, a...)))
}

func (b badgerLog) Warningf(f string, a ...any) {
	b.log.Warn("index", "detail", strings.TrimSpace(fmt.Sprintf(f, a...)))
}
func (badgerLog) Infof(string, ...any)  {}
func (badgerLog) Debugf(string, ...any) {}

// write takes entries in and writes what waits, where there is room. Whoever
// reads sees the entries from now on. It fails where too many wait already, or
// one is larger than badger takes.
func (x *Index) write(entries map[string]entry) error {
	for key, e := range entries {
		if len(key)+len(e.value) > maxEntry {
			return fmt.Errorf("write index: entry of %d bytes is too large", len(key)+len(e.value))
		}
	}
	x.writing.Lock()
	defer x.writing.Unlock()
	if x.waits.Load() > maxWaiting {
		x.flush()
	}
	if x.waits.Load() > maxWaiting {
		return fmt.Errorf("write index: disk full, and %d changes are in memory already", maxWaiting)
	}
	x.mu.Lock()
	maps.Copy(x.waiting, entries)
	x.waits.Store(int64(len(x.waiting)))
	x.mu.Unlock()
	x.recent.changed(entries)
	x.flush()
	x.worked(len(entries))
	return nil
}

// flush writes what waits to the database as long as there is room; x.writing
// is held. What cannot be written goes on waiting.
func (x *Index) flush() {
	db := x.db.Load()
	for db != nil && x.waits.Load() > 0 && x.free() >= Floor {
		entries := x.some()
		if err := db.Update(func(txn *badger.Txn) error { return set(txn, entries) }); err != nil {
			x.log.Error("cannot write index; changes stay in memory", "error", err)
			return
		}
		x.allocate()
		x.mu.Lock()
		for key := range entries {
			delete(x.waiting, key)
		}
		x.waits.Store(int64(len(x.waiting)))
		x.mu.Unlock()
	}
}

// some returns a batch of what waits.
func (x *Index) some() map[string]entry {
	x.mu.RLock()
	defer x.mu.RUnlock()
	entries := map[string]entry{}
	bytes := 0
	for key, e := range x.waiting {
		if bytes += len(key) + len(e.value); len(entries) == batch || bytes > batchBytes && len(entries) > 0 {
			break
		}
		entries[key] = e
	}
	return entries
}

func set(txn *badger.Txn, entries map[string]entry) error {
	for key, e := range entries {
		var err error
		if e.deleted {
			err = txn.Delete([]byte(key))
		} else {
			b := badger.NewEntry([]byte(key), e.value)
			b.ExpiresAt = e.expires
			err = txn.SetEntry(b)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// allocate has the disk promise all blocks of the log that badger writes to, so
// that a disk that fills up now does not fail it there. x.writing is held.
func (x *Index) allocate() {
	newest := x.wal
	if newest < 0 {
		logs, _ := filepath.Glob(filepath.Join(x.dir, "*.mem")) // the pattern is right
		for _, name := range logs {
			var n int
			if _, err := fmt.Sscanf(filepath.Base(name), "%d.mem", &n); err == nil {
				newest = max(newest, n)
			}
		}
	} else if newest++; !fileExists(x.walName(newest)) {
		return
	}
	f, err := os.OpenFile(x.walName(newest), os.O_WRONLY, 0)
	if err == nil {
		err = unix.Fallocate(int(f.Fd()), 0, 0, 2*memtable) // as long as badger makes it
		_ = f.Close()                                       // nothing was written
	}
	if errors.Is(err, unix.ENOSPC) {
		return // the next write tries again
	}
	if err != nil { // a file system that promises no blocks
		x.log.Debug("cannot allocate disk space for the index's log", "error", err)
	}
	x.wal = newest
}

func (x *Index) walName(n int) string { return filepath.Join(x.dir, fmt.Sprintf("%05d.mem", n)) }

func fileExists(name string) bool {
	return unix.Faccessat(unix.AT_FDCWD, name, unix.F_OK, unix.AT_SYMLINK_NOFOLLOW) == nil
}

// waitingFor returns what waits to be written to a key.
func (x *Index) waitingFor(key []byte) (entry, bool) {
	if x.waits.Load() == 0 {
		return entry{}, false
	}
	x.mu.RLock()
	defer x.mu.RUnlock()
	e, ok := x.waiting[string(key)]
	return e, ok
}

// waitingWith returns what waits for keys that begin with prefix.
func (x *Index) waitingWith(prefix []byte) map[string]entry {
	if x.waits.Load() == 0 {
		return nil
	}
	x.mu.RLock()
	defer x.mu.RUnlock()
	found := map[string]entry{}
	for key, e := range x.waiting {
		if strings.HasPrefix(key, string(prefix)) {
			found[key] = e
		}
	}
	return found
}

// alive says that the key has this value still.
func (e entry) alive() bool {
	return !e.deleted && (e.expires == 0 || e.expires > uint64(time.Now().Unix()))
}

// preferRecords takes the blobs' records in a database that could not be opened
// until now for better than those that a walk of the disk found in that time.
func (x *Index) preferRecords(db *badger.DB) {
	for key := range x.waitingWith([]byte{'b'}) {
		err := db.View(func(txn *badger.Txn) error { _, err := txn.Get([]byte(key)); return err })
		if err != nil {
			continue // also where the walk is all there is
		}
		x.mu.Lock()
		if !x.waiting[key].deleted {
			delete(x.waiting, key)
		}
		x.waits.Store(int64(len(x.waiting)))
		x.mu.Unlock()
	}
}

// Maintain writes what waits, and renews the reserve. It returns true where it
// opened the database, which had no room until now: see open.
func (x *Index) Maintain() (opened bool) {
	x.KeepReserve(0)
	opened = x.db.Load() == nil && x.free() >= Floor && x.open()
	x.writing.Lock()
	defer x.writing.Unlock()
	x.flush()
	if n := x.waits.Load(); n > 0 {
		x.log.Warn("disk full; index changes stay in memory", "changes", n, "free_bytes", x.free())
	}
	return opened
}

// Close writes what waits and closes the database. Where the disk has no room
// for that, it is left as a process that is killed leaves it.
func (x *Index) Close() error {
	x.resting.Stop()
	db := x.db.Load()
	if db == nil {
		return nil
	}
	x.survived.Stop()
	x.writing.Lock()
	defer x.writing.Unlock()
	if !x.makeRoom() {
		x.log.Warn("disk full; index closed without writing its changes", "waiting", x.waits.Load())
		return nil
	}
	x.flush()
	return db.Close()
}
