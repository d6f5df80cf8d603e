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

// DefaultChecks is how many checks run at once if the configuration does not say.
const DefaultChecks = 2048

// checks runs the requests to registries that several clients may share. Callers with the
// same question share one check. It continues when they leave, so that the next one finds its
// answer. The number of checks is bounded: in all, for each registry, and for each client.
type checks struct {
	ctx     context.Context // of each; it ends with the Proxy
	places  *bounds.Bulkhead
	memory  *bounds.Memory
	running sync.WaitGroup

	mu     sync.Mutex // guards flying, and waiting of each flight; the locks of places and memory are taken under it
	flying map[questionKey]*flight
}

// question is what a check asks.
type question struct {
	op     string // the kind of question
	about  cacheKey
	holder bounds.Holder // whose share of the checks it uses: the first client's
	// abandoned: the check ends when no client waits for it any more, because it costs
	// more than its answer is worth to the next one.
	abandoned bool
}

// questionKey is the same for callers that want the same answer.
type questionKey struct {
	op    string
	about cacheKey
}

func (q question) key() questionKey { return questionKey{q.op, q.about} }

// flight is a check that is running.
type flight struct {
	cancel  context.CancelCauseFunc
	waiting int           // callers
	landed  chan struct{} // closed once value and err are set
	value   any
	err     error
}

// errAbandoned ends a check that no client waits for.
var errAbandoned = errors.New("no client waits for it")

func newChecks(ctx context.Context, memory *bounds.Memory, limit int, share float64) *checks {
	return &checks{
		ctx: ctx, memory: memory, places: bounds.NewBulkhead(cmp.Or(limit, DefaultChecks), share),
		flying: map[questionKey]*flight{},
	}
}

// once runs f once for all callers with the same question, and waits for it until ctx ends.
// f gets the values of the first caller's ctx; its ctx ends with the Proxy, or when the check
// is abandoned.
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

// board joins the flight for a question, or starts it. It fails with errBusy if there are
// too many.
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

// leave ends the waiting of one caller.
func (c *checks) leave(q question, fl *flight) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if fl.waiting--; fl.waiting > 0 || !q.abandoned {
		return
	}
	if c.flying[q.key()] == fl {
		delete(c.flying, q.key()) // the next caller starts another one
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
