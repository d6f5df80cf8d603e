package upstream

import (
	"context"
	"errors"
	"net/http"
	"time"
)

// optionalPatience is how long an optional request may take to be answered. It costs a
// client that much where a registry answers none of its kind.
const optionalPatience = 5 * time.Second

// errImpatient ends an optional request.
var errImpatient = errors.New("an optional request takes too long")

// optional puts a question that a direct client would not ask: a HEAD as proof, a
// part of a blob. Registries answer such questions in any way, or not at all. Where
// plainHelps says so, the caller asks the plain question, before anybody is told
// no.
func (r *Registry) optional(ctx context.Context, q query) (*http.Response, error) {
	own, cancel := context.WithCancelCause(ctx)
	patience := time.AfterFunc(optionalPatience, func() { cancel(errImpatient) })
	q.optional = true
	resp, err := r.ask(own, q)
	patience.Stop()
	if err == nil {
		resp.Body.(*body).after(func() { cancel(nil) })
		return resp, nil
	}
	impatient := ctx.Err() == nil && errors.Is(context.Cause(own), errImpatient)
	cancel(nil)
	if impatient {
		return nil, r.fail(q.op, ErrTimeout, "not answered within %s", optionalPatience)
	}
	return nil, err
}

// plainHelps reports whether the plain request may be answered though an optional one
// has failed with err. What rests, a request, an account or a host, says so to the
// plain one too, if it is meant as well.
func plainHelps(ctx context.Context, err error) bool {
	return ctx.Err() == nil && !errors.Is(err, errNotAsked) && !errors.Is(err, errEgress) && !errors.Is(err, errNoCredential)
}
