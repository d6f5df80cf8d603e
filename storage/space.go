package storage

import (
	"log/slog"
	"sync"

	"github.com/cachalot-registry/cachalot/storage/index"
)

// space is the account of the disk: what files take of it, what running fills have
// reserved, and the limits of both. All sizes are bytes of the disk, in whole blocks.
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
	partial     int64 // taken by fills/
	reserved    int64 // that running fills have yet to take
	quarantined int64 // taken by quarantine/
}

// reserve promises need bytes, unless they would break a limit. What becomes of them is
// said by spend, or by release.
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

// spend counts bytes that were reserved as such that fills/ takes.
func (a *space) spend(bytes int64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.growLocked(bytes)
	a.reserved -= bytes
}

// grow counts bytes that fills/ takes and that were not reserved; less than 0: those
// that it takes no more.
func (a *space) grow(bytes int64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.growLocked(bytes)
}

func (a *space) growLocked(bytes int64) {
	a.partial += bytes
	a.metrics.partial.Add(float64(bytes))
}

// commit counts bytes of fills/ as a blob's, which record does. Where that fails they are
// in fills/ no more all the same.
func (a *space) commit(bytes int64, record func() error) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	defer a.growLocked(-bytes)
	return record()
}

// setQuarantined says what quarantine/ takes.
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

// over is by how many bytes need more would be above mark percent of maxSize,
// or eat into minFree and as large a part of it again as is missing to 100.
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
