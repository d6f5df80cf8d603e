package proxy

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/cachalot-registry/cachalot/bounds"
	"github.com/cachalot-registry/cachalot/task"
)

// DefaultChecks is how many checks run at once where the configuration does not say.
const DefaultChecks = 2048

// checks are the questions to registries. A question that several clients have is put
// once, and goes on when they leave, so that the next one finds its answer. Their number
// is bounded: in all, for each registry, and for each client.
type checks struct {
	ctx     context.Context // of each; it ends with the Proxy
	places  *bounds.Bulkhead
	memory  *bounds.Memory
	running sync.WaitGroup

	mu     sync.Mutex // guards flying, and waiting of each flight
	flying map[questionKey]*flight
}

// question is what a check asks.
type question struct {
	op     string // what is asked
	about  cacheKey
	holder bounds.Holder // of its place: the first client's
	// abandoned ends the check when no one waits for it any more: it costs more than
	// its answer is worth to the next one.
	abandoned bool
}

// questionKey is the same for those who want the same answer.
type questionKey struct {
	op    string
	about cacheKey
}

func (q question) key() questionKey { return questionKey{q.op, q.about} }

// flight is a check under way.
type flight struct {
	cancel  context.CancelCauseFunc
	waiting int
	landed  chan struct{} // closed once the two below are set
	value   any
	err     error
}

// errAbandoned ends a check that no one waits for.
var errAbandoned = errors.New("no client waits for it")

func newChecks(ctx context.Context, memory *bounds.Memory, limit int, share float64) *checks {
	return &checks{
		ctx: ctx, memory: memory, places: bounds.NewBulkhead(cmp.Or(limit, DefaultChecks), share),
		flying: map[questionKey]*flight{},
	}
}

// once runs f for all callers with the same key, and waits for it as long as ctx.
// f has the values of the first caller's ctx, and ends with the Proxy, or once it is
// abandoned.
func once[T any](ctx context.Context, c *checks, q question, f func(context.Context) (T, error)) (T, error) {
	var none T
	fl, err := c.board(ctx, q, func(ctx context.Context) (any, error) { return f(ctx) })
	if err != nil {
		return none, err
	}
	defer c.leave(q, fl)
	select {
	case <-fl.landed:
		value, _ := fl.value.(T)
		return value, fl.err
	case <-ctx.Done():
		return none, context.Cause(ctx)
	}
}

// board joins the flight for a question, or starts it where there is a place.
func (c *checks) board(ctx context.Context, q question, f func(context.Context) (any, error)) (*flight, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if fl := c.flying[q.key()]; fl != nil {
		fl.waiting++
		return fl, nil
	}
	if !c.places.Enter(q.holder) {
		return nil, fmt.Errorf("%s: %w", q.holder.Group, errBusy)
	}
	ctx, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	ctx, closed := c.memory.Account(ctx, q.holder)
	fl := &flight{cancel: cancel, waiting: 1, landed: make(chan struct{})}
	c.flying[q.key()] = fl
	c.running.Go(task.Guard("question to an upstream", func() {
		defer c.land(q, fl)
		defer closed()
		defer context.AfterFunc(c.ctx, func() { cancel(context.Cause(c.ctx)) })()
		fl.err = task.Try("question to an upstream", func() (err error) { fl.value, err = f(ctx); return err })
	}))
	return fl, nil
}

// leave is for who waits no longer.
func (c *checks) leave(q question, fl *flight) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if fl.waiting--; fl.waiting > 0 || !q.abandoned {
		return
	}
	if c.flying[q.key()] == fl {
		delete(c.flying, q.key()) // who comes now starts another
	}
	fl.cancel(errAbandoned)
}

// land ends a check.
func (c *checks) land(q question, fl *flight) {
	c.mu.Lock()
	if c.flying[q.key()] == fl {
		delete(c.flying, q.key())
	}
	c.mu.Unlock()
	fl.cancel(nil)
	c.places.Leave(q.holder)
	close(fl.landed)
}
