package upstream

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"time"

	"github.com/cachalot-registry/cachalot/task"
)

// order returns the URLs in the order in which to try them: as configured, without those
// to skip, and with the broken or slow ones last.
func (r *Registry) order(skip []*endpoint) []*endpoint {
	if len(r.endpoints) == 1 {
		return r.endpoints
	}
	var well, broken []*endpoint
	for _, e := range r.endpoints {
		if slices.Contains(skip, e) {
			continue
		}
		if e.healthy() && !e.slow() {
			well = append(well, e)
		} else {
			broken = append(broken, e)
		}
	}
	return append(well, broken...)
}

// reply is the result of a query to one URL.
type reply struct {
	from *endpoint
	resp *http.Response
	err  error
}

// askEach sends q to the URLs until one answers: to the next one when one has
// failed, or, if q may be raced, when none has answered for RaceAfter. The first
// response is used, and the other requests are cancelled. Only a 404 of the last URL
// is final: a 404 of another may mean that a mirror is incomplete.
func (r *Registry) askEach(ctx context.Context, q query) (*http.Response, error) {
	order := r.order(q.skip)
	if len(r.endpoints) == 1 {
		return r.askOne(ctx, order[0], q)
	}
	last := r.endpoints[len(r.endpoints)-1]
	replies := make(chan reply, len(order)) // so that no sender blocks
	running := map[*endpoint]context.CancelFunc{}
	defer func() { // all but the winner
		for e, cancel := range running {
			e.outran(ctx)
			cancel()
		}
		n := len(running)
		go task.Guard("end of a race", func() {
			for range n {
				if late := <-replies; late.err == nil {
					late.resp.Body.Close()
				}
			}
		})()
	}()
	next := func() {
		e := order[0]
		order = order[1:]
		attempt, cancel := context.WithCancel(ctx)
		running[e] = cancel
		go func() {
			got := reply{from: e}
			got.err = task.Try("question to a URL", func() (err error) {
				got.resp, err = r.askOne(attempt, e, q) //nolint:bodyclose // closed by the receiver of the reply
				return err
			})
			replies <- got
		}()
	}
	next()
	var telling error
	for {
		var silence <-chan time.Time
		if q.raced && r.cfg.RaceAfter > 0 && len(order) > 0 {
			silence = time.After(r.cfg.RaceAfter)
		}
		select {
		case <-silence:
			next()
			continue
		case got := <-replies:
			cancel := running[got.from]
			delete(running, got.from)
			if got.err == nil {
				b := got.resp.Body.(*body)
				b.after(cancel)
				b.tooSlow = got.from.setSlow
				got.from.outrun.Store(0)
				return got.resp, nil
			}
			cancel()
			if errors.Is(got.err, ErrTimeout) && ctx.Err() == nil {
				got.from.setSlow()
			}
			no := SaysNo(got.err) || errors.Is(got.err, ErrDenied) || statusOf(got.err) == http.StatusRequestedRangeNotSatisfiable
			if ctx.Err() != nil || no && got.from == last {
				return nil, got.err
			}
			telling = moreTelling(telling, got.err)
			telling = notOwn(telling)
		}
		switch {
		case len(order) > 0:
			next()
		case len(running) == 0:
			return nil, telling
		}
	}
}

// moreTelling returns the failure that tells the caller more; of two rate limits or
// pauses, the one that ends first.
func moreTelling(a, b error) error {
	if a == nil || rank(b) > rank(a) {
		return b
	}
	// A rate limit that does not say when it ends may be the longer one.
	known := restOf(b) > 0 || !errors.Is(b, ErrRateLimited)
	if rank(a) == rank(b) && known && restOf(b) < restOf(a) {
		return b
	}
	return a
}

// notOwn returns err as an error of a mirror, which does not speak for the registry.
func notOwn(err error) error {
	e, ok := errors.AsType[*Error](err)
	if !ok || !e.own {
		return err
	}
	of := *e
	of.own = false
	return &of
}
