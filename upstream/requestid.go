package upstream

import "context"

// ofRequest is a context of what happens because of a client's request.
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

// WithRequestID returns a context of what happens because of the client's
// request with this id. The registry's own URLs are sent it as X-Request-Id; token
// servers and the targets of redirects are not.
func WithRequestID(ctx context.Context, id string) context.Context {
	return &ofRequest{ctx, id}
}

// RequestID is the id of the client's request that ctx is of, or "".
func RequestID(ctx context.Context) string {
	if c, ok := ctx.Value(ofRequestKey{}).(*ofRequest); ok {
		return c.id
	}
	return ""
}

// apart is ctx with the end of the registry in place of its own, for what is
// done for many callers: it keeps the values of the first.
func (r *Registry) apart(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	stop := context.AfterFunc(r.ctx, func() { cancel(context.Cause(r.ctx)) })
	return ctx, func() {
		stop()
		cancel(nil)
	}
}
