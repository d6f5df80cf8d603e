package upstream

import "context"

// ofRequest is the context of work for a client's request.
type ofRequest struct {
	context.Context
	id string
}

type ofRequestKey struct{}

func (c *ofRequest) Value(key any) any {
	if key == (ofRequestKey{}) {
		return c
	}
	return c.Context.Value(key)
}

// WithRequestID returns a context of work for the client's request with this id. Requests
// to the registry's own URLs have it as X-Request-Id; requests to token servers and to
// the targets of redirects do not.
func WithRequestID(ctx context.Context, id string) context.Context {
	return &ofRequest{ctx, id}
}

// RequestID returns the id of the client's request that ctx belongs to, or "".
func RequestID(ctx context.Context) string {
	if c, ok := ctx.Value(ofRequestKey{}).(*ofRequest); ok {
		return c.id
	}
	return ""
}

// apart returns ctx with the end of the registry in place of its own, for work that is
// done for many callers. It has the values of the first caller's ctx.
func (r *Registry) apart(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	stop := context.AfterFunc(r.ctx, func() { cancel(context.Cause(r.ctx)) })
	return ctx, func() {
		stop()
		cancel(nil)
	}
}
