package bounds

import (
	"context"
	"errors"
	"io"
	"runtime"
	"sync"
	"time"
)

// Memory is a budget for data that is read whole into memory: manifests, lists, and the
// values parsed from them. Data that does not fit is refused, and may be requested again.
// For the processor time that it takes, see Work.
type Memory struct {
	places *Bulkhead // a place is a KiB
	// turns are for Work: one value for each processor that it may use, the time from which it may.
	turns chan time.Time
}

const (
	kib = 1 << 10
	// firstRead is the first buffer of ReadAll if no length is announced, in bytes.
	firstRead = 4 << 10
	// copies is how often a body is in memory: the values parsed from it take as much
	// again. For many small values see Unmarshal.
	copies = 2
	// patience is how long Charge waits for memory, and lookEvery how often it tries again.
	patience  = 3 * time.Second
	lookEvery = 25 * time.Millisecond
)

// maxAnnounced is more than the length of any data that is read whole. ReadAll does not
// believe an announced length from there on.
const maxAnnounced = 64 << 20

// ErrNoMemory: the data does not fit into the budget now.
var ErrNoMemory = errors.New("no memory is left for this; ask again later, or give cachalot more")

// NewMemory returns a budget of so many bytes. share limits registries, repositories and
// clients as in a [Bulkhead].
func NewMemory(bytes int64, share float64) *Memory {
	m := &Memory{NewBulkhead(max(1, int(bytes/kib)), share), make(chan time.Time, max(1, runtime.GOMAXPROCS(0)/2))}
	for range cap(m.turns) {
		m.turns <- time.Time{}
	}
	return m
}

// Limit returns the budget, in bytes.
func (m *Memory) Limit() int64 { return int64(m.places.Limit()) * kib }

// Taken returns how much of the budget is used, in bytes.
func (m *Memory) Taken() int64 { return int64(m.places.Taken()) * kib }

// account is the part of a budget that one piece of work has.
type account struct {
	memory *Memory
	holder Holder

	mu     sync.Mutex // guards the fields below
	taken  int
	closed bool
}

type accountKey struct{}

// Account returns a context under which [ReadAll] charges a holder. closed ends the charge;
// the caller calls it when it has released all of the data. A nil Memory has no bound.
func (m *Memory) Account(ctx context.Context, h Holder) (_ context.Context, closed func()) {
	if m == nil {
		return ctx, func() {}
	}
	a := &account{memory: m, holder: h}
	return context.WithValue(ctx, accountKey{}, a), a.close
}

func (a *account) close() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.memory.places.leave(a.holder, a.taken)
	a.taken, a.closed = 0, true
}

// charge takes n KiB, if there are so many; after the account is closed, none.
func (a *account) charge(n int) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed || !a.memory.places.enter(a.holder, n) {
		return false
	}
	a.taken += n
	return true
}

// Charge charges bytes that are about to be in memory to the account of ctx. It waits a
// while if they do not fit. Without an account there is no bound.
func Charge(ctx context.Context, bytes int) error {
	a, _ := ctx.Value(accountKey{}).(*account)
	n := (bytes + kib - 1) / kib
	switch {
	case a == nil || a.charge(n):
		return nil
	case a.holder.Group != "" && n > a.memory.places.GroupLimit(): // waiting does not help
		return ErrNoMemory
	}
	late := time.NewTimer(patience)
	defer late.Stop()
	look := time.NewTicker(lookEvery)
	defer look.Stop()
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-late.C:
			return ErrNoMemory
		case <-look.C:
			if a.charge(n) {
				return nil
			}
		}
	}
}

// ReadAll is [io.ReadAll] within the account of ctx: it charges the bytes, and the values
// that are parsed from them. announced is how many bytes are expected, which are charged
// before; -1: that is not known.
func ReadAll(ctx context.Context, r io.Reader, announced int64) ([]byte, error) {
	size := firstRead
	if announced >= 0 && announced < maxAnnounced {
		size = int(announced) + 1 // for the read that finds the end
	}
	for b := []byte(nil); ; size *= 2 {
		if err := Charge(ctx, copies*(size-cap(b))); err != nil {
			return nil, err
		}
		next := make([]byte, len(b), size)
		copy(next, b)
		b = next
		for len(b) < cap(b) {
			n, err := r.Read(b[len(b):cap(b)])
			b = b[:len(b)+n]
			if err == io.EOF { // as io.Reader requires; a wrapped one is another error
				return b, nil
			}
			if err != nil {
				return b, err
			}
		}
	}
}
