package storage

import (
	"context"
	"sync"

	"github.com/cachalot-registry/cachalot/task"
)

// lifetime owns the goroutines of a store, from Open to Close.
type lifetime struct {
	ctx     context.Context // ends with [ErrClosed] as its cause
	cancel  context.CancelCauseFunc
	running sync.WaitGroup
}

func newLifetime() *lifetime {
	ctx, cancel := context.WithCancelCause(context.Background())
	return &lifetime{ctx: ctx, cancel: cancel}
}

// run runs work in the background. end waits for it.
func (l *lifetime) run(work string, f func()) { l.running.Go(task.Guard(work, f)) }

// keep runs work that lasts until ctx ends: see [task.Keep].
func (l *lifetime) keep(work string, f func()) { l.running.Go(task.Keep(l.ctx, work, f)) }

// within returns a context that ends with ctx or with the lifetime.
func (l *lifetime) within(ctx context.Context) (context.Context, context.CancelCauseFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(l.ctx, func() { cancel(context.Cause(l.ctx)) })
	return ctx, func(cause error) {
		stop()
		cancel(cause)
	}
}

// end ends the lifetime, and waits for what runs in it.
func (l *lifetime) end() {
	l.cancel(ErrClosed)
	l.running.Wait()
}
