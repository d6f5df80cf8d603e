package bounds

import (
	"context"
	"errors"
	"io"
	"runtime"
	"sync"
	"time"
)

// Memory is a budget for what is read whole into memory: manifests, lists, and what is
// made of them. What does not fit is refused, and may be asked for again. Of the work on
// it, see Work.
type Memory struct {
	places *Bulkhead // a place is a KiB
	// turns are for Work: a value for each processor that it may have, from when on.
	turns chan time.Time
}

const (
	kib = 1 << 10
	// firstRead is what ReadAll begins with where no length is announced, in bytes.
	firstRead = 4 << 10
	// copies is how often a body is in memory: what is made of it takes as much again. Of
	// many small values see Unmarshal.
	copies = 2
	// patience is how long work waits for memory, and lookEvery how often it looks.
	patience  = 3 * time.Second
	lookEvery = 25 * time.Millisecond
)

// maxAnnounced is a length that no one announces of what is read whole.
const maxAnnounced = 64 << 20

// ErrNoMemory: what is read does not fit into the budget now.
var ErrNoMemory = errors.New("no memory is left for this; ask again later, or give cachalot more")

// NewMemory is a budget of so many bytes, of which a registry, or a client that others
// would lack them for, has no more than a share.
func NewMemory(bytes int64, share float64) *Memory {
	m := &Memory{NewBulkhead(max(1, int(bytes/kib)), share), make(chan time.Time, max(1, runtime.GOMAXPROCS(0)/2))}
	for range cap(m.turns) {
		m.turns <- time.Time{}
	}
	return m
}

// Limit is the budget, in bytes.
func (m *Memory) Limit() int64 { return int64(m.places.Limit()) * kib }

// Taken is how much of it is used, in bytes.
func (m *Memory) Taken() int64 { return int64(m.places.Taken()) * kib }

// account is what one piece of work has of a budget.
type account struct {
	memory *Memory
	holder Holder

	mu     sync.Mutex // guards the fields below
	taken  int
	closed bool
}

type accountKey struct{}

// Account has what [ReadAll] reads under the context that it returns charged to a holder,
// until close is called, which is for who has let go of it all. A nil Memory has no bound.
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

// charge takes so many KiB; after the account is closed, none.
func (a *account) charge(n int) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed || !a.memory.places.enter(a.holder, n) {
		return false
	}
	a.taken += n
	return true
}

// Charge has bytes, which are about to be in memory, charged to the account of ctx. It
// waits a while for them. Without an account there is no bound.
func Charge(ctx context.Context, bytes int) error {
	a, _ := ctx.Value(accountKey{}).(*account)
	n := (bytes + kib - 1) / kib
	switch {
	case a == nil || a.charge(n):
		return nil
	case a.holder.Group != "" && n > a.memory.places.GroupLimit(): // however long it waits
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

// ReadAll is [io.ReadAll] within the account of ctx: what comes is charged, and with it
// what is made of it. announced is how many bytes are to come, which are charged before;
// -1: that is not known.
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
			if err == io.EOF { // as io.Reader says; one that is wrapped is something else
				return b, nil
			}
			if err != nil {
				return b, err
			}
		}
	}
}
