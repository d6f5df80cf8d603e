package bounds

import (
	"context"
	"errors"
	"io"
	"sync"
)

// Memory is a budget for what is read whole into memory: manifests, lists, and what is
// made of them. What does not fit is refused, and may be asked for again.
type Memory struct{ places *Bulkhead } // a place is a KiB

const (
	kib = 1 << 10
	// firstRead is what ReadAll begins with, in bytes.
	firstRead = 4 << 10
	// copies is how often a body is in memory at most: a buffer that has grown leaves half
	// of it behind, and what is parsed or written of it takes as much again.
	copies = 3
)

// ErrNoMemory: what is read does not fit into the budget now.
var ErrNoMemory = errors.New("no memory is left for this; ask again later, or give cachalot more")

// NewMemory is a budget of so many bytes, of which a registry, or a client that others
// would lack them for, has no more than a share.
func NewMemory(bytes int64, share float64) *Memory {
	return &Memory{NewBulkhead(max(1, int(bytes/kib)), share)}
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

// charge takes so many bytes; what comes after the account is closed is refused.
func (a *account) charge(bytes int) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	n := (bytes + kib - 1) / kib
	if a.closed || !a.memory.places.enter(a.holder, n) {
		return ErrNoMemory
	}
	a.taken += n
	return nil
}

// Charge has bytes, which are about to be in memory, charged to the account of ctx.
// Without one there is no bound.
func Charge(ctx context.Context, bytes int) error {
	a, _ := ctx.Value(accountKey{}).(*account)
	if a == nil {
		return nil
	}
	return a.charge(bytes)
}

// ReadAll is [io.ReadAll] within the account of ctx: what has come is charged, as it
// comes, and with it what is made of it.
func ReadAll(ctx context.Context, r io.Reader) ([]byte, error) {
	var b []byte
	for size := firstRead; ; size *= 2 {
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
