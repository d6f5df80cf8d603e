package upstream

import (
	"context"
	"errors"
	"net/http"
	"time"
)

// optionalPatience is how long an optional request may wait for a response. A client waits
// that long if a registry does not answer requests of this kind.
const optionalPatience = 5 * time.Second

// errImpatient ends an optional request.
var errImpatient = errors.New("an optional request takes too long")

// optional sends a request that a direct client would not send: a HEAD as proof, or a
// range of a blob. Registries answer such requests in any way, or not at all. If it fails,
// and plainHelps reports true, the caller sends the plain request before it reports a
// failure.
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

// plainHelps reports whether the plain request may succeed although an optional one has
// failed with err. Pauses of an object, an account or a host are not considered here: if
// one applies to the plain request too, that fails at once.
func plainHelps(ctx context.Context, err error) bool {
	return ctx.Err() == nil && !errors.Is(err, errNotAsked) && !errors.Is(err, errEgress) && !errors.Is(err, errNoCredential)
}
