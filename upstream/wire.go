package upstream

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"slices"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/net/http/httpproxy"

	"github.com/cachalot-registry/cachalot/task"
)

const (
	userAgent = "cachalot/1"
)

// newTransport returns a transport for HTTP/1.1 only: over HTTP/2 all downloads from a
// host would share one connection, its window and its losses.
func newTransport(cfg Config, policy *egress) (*http.Transport, error) {
	roots, err := cfg.roots()
	if err != nil {
		return nil, err
	}
	proxy := httpproxy.FromEnvironment().ProxyFunc()
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	dial := policy.dial
	if cfg.Dial != nil {
		dial = cfg.Dial
	}
	connect := func(ctx context.Context, network, address string) (conn net.Conn, err error) { // runs in a goroutine of the transport
		err = task.Try("connection to an upstream", func() (err error) { conn, err = dial(ctx, network, address); return err })
		return conn, err
	}
	return &http.Transport{
		Proxy:                  func(req *http.Request) (*url.URL, error) { return proxy(req.URL) },
		DialContext:            connect,
		TLSClientConfig:        &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots},
		TLSHandshakeTimeout:    cfg.Timeouts.TLSHandshake,
		ResponseHeaderTimeout:  cfg.Timeouts.ResponseHeader,
		MaxConnsPerHost:        cfg.MaxConnections,
		MaxIdleConnsPerHost:    cfg.MaxConnections,
		MaxIdleConns:           2 * cfg.MaxConnections, // redirects can name any number of hosts
		IdleConnTimeout:        60 * time.Second,
		MaxResponseHeaderBytes: 256 << 10,
		DisableCompression:     true, // the bytes are hashed as they come
		Protocols:              protocols,
	}, nil
}

// own returns the registry's endpoint at origin; nil: the origin is that of a redirect or
// a token server.
func (r *Registry) own(origin string) *endpoint {
	for _, e := range r.endpoints {
		if e.origin == origin {
			return e
		}
	}
	return nil
}

// honorRetryAfter pauses the object of a response, or its origin, if it has a Retry-After.
func (r *Registry) honorRetryAfter(ctx context.Context, p purpose, u *url.URL, resp *http.Response) {
	d, origin := parseRetryAfter(resp.Header, time.Now()), origin(u)
	if d == 0 {
		return
	}
	all := r.rests.rest(origin, p.object(u), d, p.optional || p.op == opPing)
	r.log.WarnContext(ctx, "upstream said when to ask again", "upstream", r.cfg.Name, "origin", origin, "all", all, "status", resp.StatusCode, "seconds", d.Seconds())
}

// purpose is what a request is for.
type purpose struct {
	op   string
	repo string // "": none
	path string // of the query, also after a redirect; "": no query
	// optional: an error response, or none in time, says nothing about the origin.
	optional bool
}

// object returns the name of the requested object. It is the same for other requests for
// that object, although a redirect may lead to a new path each time.
func (p purpose) object(u *url.URL) string {
	switch {
	case p.op == opToken:
		return u.Path + "?" + u.Query().Get("scope")
	case p.optional:
		return p.op + "\x00" + p.path // its failures do not count for the plain request
	case p.path != "":
		return p.path
	}
	return u.Path
}

// roundTrip sends one request and waits for the header of the response; it follows no
// redirect. The body fails after a pause of Timeouts.Progress, and must be closed. Errors
// are ErrUnavailable, ErrTimeout, the context's, or ErrInvalid if the egress policy
// refuses the address.
func (r *Registry) roundTrip(ctx context.Context, p purpose, req *http.Request) (*http.Response, error) {
	from := origin(req.URL)
	object := p.object(req.URL)
	if left := r.rests.left(from, object); left > 0 {
		resting := r.fail(p.op, errResting, "").because(errors.New(req.URL.Host))
		resting.RetryAfter = left
		return nil, resting
	}
	leave, err := r.connections.enter(ctx, from, p.repo)
	if err != nil {
		return nil, r.networkError(ctx, p.op, "waiting for a connection", err)
	}
	resp, err := r.send(ctx, p, req, from, object)
	if err != nil {
		leave()
		return nil, err
	}
	resp.Body.(*body).after(leave)
	return resp, nil
}

// send is roundTrip once there is a connection. It does not send the request if a breaker
// has opened while the request waited for the connection.
func (r *Registry) send(ctx context.Context, p purpose, req *http.Request, from, object string) (*http.Response, error) {
	over, allowed := r.breakers.allow(from, p.repo, object)
	if !allowed {
		return nil, r.unreached(p.op, errNotAsked, errors.New(req.URL.Host), "")
	}
	done := func(o outcome) {
		if p.optional && o == failedObject {
			o = ignored
		}
		over(o)
		if e := r.own(from); e != nil {
			e.count(o)
		}
	}
	var sent atomic.Bool  // false while waiting for one of our own connections
	var wrote atomic.Bool // the request's header was written
	reqCtx, cancel := context.WithCancelCause(ctx)
	reqCtx = httptrace.WithClientTrace(reqCtx, &httptrace.ClientTrace{
		DNSStart:     func(httptrace.DNSStartInfo) { sent.Store(true) },
		ConnectStart: func(_, _ string) { sent.Store(true) },
		GotConn:      func(httptrace.GotConnInfo) { sent.Store(true) },
		WroteHeaders: func() { wrote.Store(true) },
	})
	req.Header.Set("User-Agent", userAgent)
	reqCtx, traced := r.traceRequest(reqCtx, p.op, req)
	r.pass(reqCtx, req)
	start := time.Now()
	var resp *http.Response
	var err error
	if reqCtx, err = r.egress.route(reqCtx, req, r.transport.Proxy); err == nil {
		resp, err = r.connections.roundTrip(req.WithContext(reqCtx))
	}
	took := time.Since(start)
	if err != nil {
		err = unquoted(err)
	}
	traced(resp, err)
	r.debug(ctx, p.op, req, resp, err, took)
	if err != nil {
		cancel(nil)
		refused, ok := errors.AsType[*refusal](err)
		switch {
		case ok: // no request was sent
			done(ignored)
			if p.op != opPing { // the request after the ping logs it
				r.log.WarnContext(ctx, "egress refused", "upstream", r.cfg.Name, "op", p.op, "host", req.URL.Host, "reason", refused.Error())
			}
			return nil, r.unreached(p.op, errEgress, refused, "%s", refused.public())
		case errors.Is(ctx.Err(), context.Canceled), ctx.Err() != nil && !sent.Load(),
			errors.Is(err, syscall.EMFILE), errors.Is(err, syscall.ENFILE): // no file descriptors are left here
			done(ignored)
			if wrote.Load() {
				r.metrics.requests.WithLabelValues(r.cfg.label(), p.op, "canceled").Inc() // its duration means nothing
			}
		case wrote.Load():
			done(failedObject)
			r.metrics.answered(r.cfg.label(), p.op, "error", took)
		default:
			done(failedOrigin)
			r.metrics.answered(r.cfg.label(), p.op, "error", took)
		}
		what := ""
		var network net.Error
		if wrote.Load() && errors.As(err, &network) && network.Timeout() {
			what = fmt.Sprintf("no answer within %s (timeouts.response_header)", r.cfg.Timeouts.ResponseHeader)
		}
		sentinel, cause := networkFailure(ctx, err)
		if cause != nil {
			cause = fmt.Errorf("ask %s: %w", req.URL.Host, cause)
		}
		return nil, r.unreached(p.op, sentinel, cause, "%s", what)
	}
	r.metrics.answered(r.cfg.label(), p.op, codeLabel(resp.StatusCode), took)
	if resp.StatusCode >= 500 && resp.StatusCode != http.StatusNotImplemented {
		done(failedObject)
		r.connections.doubt()
		r.honorRetryAfter(ctx, p, req.URL, resp)
	} else {
		done(succeeded)
		if resp.StatusCode != http.StatusTooManyRequests {
			r.rests.answered(from)
		}
		if r.own(from) != nil {
			r.metrics.lastSuccess.WithLabelValues(r.cfg.label()).SetToCurrentTime()
		}
	}
	resp.Body = newBody(ctx, reqCtx, cancel, r, p.op, resp)
	return resp, nil
}

// pass adds the id of the client's request and the trace to a request to the registry.
// Redirect targets and token servers do not get them.
func (r *Registry) pass(ctx context.Context, req *http.Request) {
	if !slices.ContainsFunc(r.endpoints, func(e *endpoint) bool { return e.origin == origin(req.URL) }) {
		return
	}
	if id := RequestID(ctx); id != "" {
		req.Header.Set("X-Request-Id", id)
	}
	passTrace(ctx, req.Header)
}

// debug logs a request with its host only: paths and queries may be signed.
func (r *Registry) debug(ctx context.Context, op string, req *http.Request, resp *http.Response, err error, took time.Duration) {
	if !r.log.Enabled(ctx, slog.LevelDebug) {
		return
	}
	answer := []any{"error", err}
	if err == nil {
		answer = []any{"status", resp.StatusCode}
	}
	r.log.DebugContext(ctx, "asked upstream", append([]any{
		"upstream", r.cfg.Name, "op", op, "method", req.Method, "host", req.URL.Host,
		"range", req.Header.Get("Range"), "seconds", took.Seconds(),
	}, answer...)...)
}

// wire is a registry's roundTrip for libraries that send requests of their own. They are
// under the egress policy, and counted.
type wire struct{ registry *Registry }

func (w wire) RoundTrip(req *http.Request) (*http.Response, error) {
	return w.registry.roundTrip(req.Context(), purpose{op: opToken}, req)
}
