package storage

import (
	"log/slog"
	"sync"

	"github.com/cachalot-registry/cachalot/storage/index"
)

// space is the account of the disk: the bytes that files use, the bytes that running fills
// have reserved, and the limits of both. All sizes are bytes of the disk, in blocks of 4 KiB: a
// million manifests of 1 KiB are 4 GB. The bytes of blobs are ledger.bytes. The index and
// its reserve are not in the account; blobs never fill the last 64 MiB (index.Floor) of the
// disk, which the index needs.
type space struct {
	maxSize int64 // of all that is in the account; 0: no limit
	minFree int64 // of the file system, left to others
	blobs   func() int64
	free    func() (free, total int64, err error)
	metrics *Metrics
	log     *slog.Logger

	// mu guards the fields below. It is held while bytes move from one of them to another
	// or to blobs, so that a sum has all bytes, and none twice. ledger.mu is taken under it.
	mu          sync.Mutex
	partial     int64 // used by fills/
	reserved    int64 // reserved by running fills, and not yet written
	quarantined int64 // used by quarantine/
}

// reserve reserves need bytes, unless they would exceed a limit. The caller passes them to
// spend as it writes them, and to release if it does not.
func (a *space) reserve(need int64) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.overLocked(need, 100) > 0 {
		return false
	}
	a.reserved += need
	return true
}

// release gives back bytes that were reserved.
func (a *space) release(bytes int64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.reserved -= bytes
}

// spend moves bytes from reserved to partial.
func (a *space) spend(bytes int64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.growLocked(bytes)
	a.reserved -= bytes
}

// grow adds bytes to partial that were not reserved; negative: bytes that were removed.
func (a *space) grow(bytes int64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.growLocked(bytes)
}

func (a *space) growLocked(bytes int64) {
	a.partial += bytes
	a.metrics.partial.Add(float64(bytes))
}

// commit moves bytes from partial to blobs: record adds them there. They leave partial even
// if record fails.
func (a *space) commit(bytes int64, record func() error) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	defer a.growLocked(-bytes)
	return record()
}

// setQuarantined sets the bytes that quarantine/ uses.
func (a *space) setQuarantined(bytes int64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.quarantined = bytes
	a.metrics.quarantineBytes.Set(float64(bytes))
}

// state returns what is in the account besides blobs.
func (a *space) state() (partial, reserved, quarantined int64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.partial, a.reserved, a.quarantined
}

// over returns by how many bytes the account plus need exceeds mark percent of maxSize, or
// leaves less free than (200 - mark) percent of minFree. It is 0 or negative within both.
func (a *space) over(need int64, mark float64) int64 {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.overLocked(need, mark)
}

func (a *space) overLocked(need int64, mark float64) int64 {
	var over int64
	if a.maxSize > 0 {
		over = a.blobs() + a.partial + a.quarantined + a.reserved + need - share(a.maxSize, mark)
	}
	free, _, err := a.free()
	if err != nil {
		a.log.Warn("cannot read free space", "error", err)
		return over
	}
	return max(over, max(share(a.minFree, 200-mark), index.Floor)+a.reserved+need-free)
}

func share(bytes int64, percent float64) int64 { return int64(float64(bytes) * (percent / 100)) }
