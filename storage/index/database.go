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

// badger writes through memory maps of sparse files. If the disk has no block for a write,
// badger gets no error but SIGBUS, mostly in its own goroutines, and the process dies. So
// the index writes only while the disk has space for all that badger may do then.
const (
	// Floor is that space: some memtables and the output of a compaction.
	Floor = 64 << 20
	// reserveSize is the size of the reserve, with which badger opens and closes on a
	// full disk; that uses some of it.
	reserveSize = Floor * 3 / 2
	memtable    = 8 << 20
	// batch and batchBytes bound the entries that are written at once: less than a
	// transaction takes, and than the half of a log that badger leaves empty.
	batch      = 1000
	batchBytes = 512 << 10
	maxEntry   = 60_000 // badger takes keys up to 65,000 bytes
	// maxWaiting bounds the memory of waiting changes, at some 300 bytes each.
	maxWaiting = 1 << 19
	// survival: a process that lives so long after opening the index did not die of it,
	// even if not all records have been read by then. Without it, two quick kills in a row
	// would cost the index of a large cache.
	survival = 3 * time.Second
	// After muchWork keys were scanned or written, and then atRest, memory is given back.
	// badger compacts for some more seconds, and holds the memory of that for another 18.
	// In an idle process Go alone would hold most of it for minutes.
	muchWork = 10_000
	atRest   = 30 * time.Second
)

// reserve is the name of the file that reserves reserveSize bytes of the disk.
func (x *Index) reserve() string { return filepath.Join(filepath.Dir(x.dir), "reserve") }

// openingMarker is a file with a byte for each start in a row that died while opening badger.
func (x *Index) openingMarker() string { return x.dir + ".opening" }

// free returns the bytes that badger may still write. It returns 0 if the disk has no more
// inodes, or is read-only (as ext4 becomes after an error), and if the process cannot open
// one more file, which kills badger.
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
	// Since Linux 6.16 an ext4 that had an error does not report that it is read-only: only
	// a write fails.
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

// ensureSpace removes the reserve if that is needed, and reports whether there is space
// then.
func (x *Index) ensureSpace() bool {
	if x.free() < Floor {
		_ = os.Remove(x.reserve()) // it may be missing
	}
	return x.free() >= Floor
}

// KeepReserve makes the reserve if it is missing: as much of it as is free, less the bytes
// to leave to others.
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
	if err != nil { // also on a file system that cannot allocate blocks
		x.log.Debug("cannot reserve disk space for the index", "error", err)
		_ = os.Remove(x.reserve())
	}
}

// open opens the database; confirmOpened confirms it later. It removes a database that
// cannot be read, or that two starts in a row have died of, and starts an empty one. If the
// disk has no space, or the database cannot be created, all entries wait in memory, and
// Maintain tries again.
func (x *Index) open() bool {
	if !x.ensureSpace() {
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

// confirmOpened removes the opening marker: the database was read, or the process has
// lived for survival, so opening it did not kill the process.
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

// openBadger opens a database. It first opens it to read all of it, so that damage is found
// now and not during a compaction; then it opens it again, so that those pages do not stay
// in memory. Some damage panics in badger's own goroutines, where it cannot be caught: see
// openingMarker.
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

// worked counts keys that were scanned or written.
func (x *Index) worked(keys int) {
	if x.work.Add(int64(keys)) >= muchWork {
		x.work.Store(0)
		x.resting.Reset(atRest)
	}
}

// badgerLog logs badger's warnings and errors, and drops the rest.
type badgerLog struct{ log *slog.Logger }

func (b badgerLog) Errorf(f string, a ...any) {
	b.log.Error("index", "detail", strings.TrimSpace(fmt.Sprintf(f, a...)))
}

func (b badgerLog) Warningf(f string, a ...any) {
	b.log.Warn("index", "detail", strings.TrimSpace(fmt.Sprintf(f, a...)))
}
func (badgerLog) Infof(string, ...any)  {}
func (badgerLog) Debugf(string, ...any) {}

// write adds entries to the waiting ones, and writes them if there is space. Readers see
// the entries from now on. It fails if too many wait already, or one is larger than badger
// takes.
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

// flush writes waiting entries to the database while there is space. Entries that cannot
// be written stay. x.writing is held.
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

// some returns a batch of waiting entries.
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

// allocate allocates all blocks of the log that badger writes to, so that writes to it
// succeed on a disk that fills up. x.writing is held.
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
	if err != nil { // a file system that cannot allocate blocks
		x.log.Debug("cannot allocate disk space for the index's log", "error", err)
	}
	x.wal = newest
}

func (x *Index) walName(n int) string { return filepath.Join(x.dir, fmt.Sprintf("%05d.mem", n)) }

func fileExists(name string) bool {
	return unix.Faccessat(unix.AT_FDCWD, name, unix.F_OK, unix.AT_SYMLINK_NOFOLLOW) == nil
}

// waitingFor returns the waiting entry of a key.
func (x *Index) waitingFor(key []byte) (entry, bool) {
	if x.waits.Load() == 0 {
		return entry{}, false
	}
	x.mu.RLock()
	defer x.mu.RUnlock()
	e, ok := x.waiting[string(key)]
	return e, ok
}

// waitingWith returns the waiting entries of keys that begin with prefix.
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

// alive reports whether the entry is neither deleted nor expired.
func (e entry) alive() bool {
	return !e.deleted && (e.expires == 0 || e.expires > uint64(time.Now().Unix()))
}

// preferRecords drops waiting records of blobs that the database has too. It is called for
// a database that is opened late: its records are better than those that a walk of the disk
// has made until then.
func (x *Index) preferRecords(db *badger.DB) {
	for key := range x.waitingWith([]byte{'b'}) {
		err := db.View(func(txn *badger.Txn) error { _, err := txn.Get([]byte(key)); return err })
		if err != nil {
			continue // the database has none
		}
		x.mu.Lock()
		if !x.waiting[key].deleted {
			delete(x.waiting, key)
		}
		x.waits.Store(int64(len(x.waiting)))
		x.mu.Unlock()
	}
}

// Maintain writes waiting changes, and makes the reserve again. It returns true if it has
// opened the database, which could not be opened before: see open.
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

// Close writes waiting changes and closes the database. If the disk has no space for that,
// the database is left as by a killed process.
func (x *Index) Close() error {
	x.resting.Stop()
	db := x.db.Load()
	if db == nil {
		return nil
	}
	x.survived.Stop()
	x.writing.Lock()
	defer x.writing.Unlock()
	if !x.ensureSpace() {
		x.log.Warn("disk full; index closed without writing its changes", "waiting", x.waits.Load())
		return nil
	}
	x.flush()
	return db.Close()
}
