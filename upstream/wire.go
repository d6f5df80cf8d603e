package upstream

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"slices"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/sony/gobreaker/v2"
	"golang.org/x/net/http/httpproxy"
)

const (
	userAgent = "cachalot/1"

	// A breaker opens after breakerFailures in a row and lets one request try
	// again after breakerPause: short, for what waits on it is a person's build.
	breakerFailures = 5
	breakerPause    = 5 * time.Second
	// maxOrigins bounds the breakers and rests kept; redirects can name any number of hosts.
	maxOrigins = 256
)

// newTransport speaks HTTP/1.1 only: over HTTP/2 all downloads from a host
// would share one connection, its window and its losses.
func newTransport(cfg Config, policy *egress) (*http.Transport, error) {
	roots, err := cfg.roots()
	if err != nil {
		return nil, err
	}
	proxy := httpproxy.FromEnvironment().ProxyFunc()
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	return &http.Transport{
		Proxy:                  func(req *http.Request) (*url.URL, error) { return proxy(req.URL) },
		DialContext:            policy.dial,
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

// errNotAsked: the breaker of the origin is open.
var errNotAsked = fmt.Errorf("%w: not asked, for it failed %d times in a row", ErrUnavailable, breakerFailures)

// errIgnored tells the breaker that an outcome says nothing of the origin.
var errIgnored = errors.New("the origin had no part in it")

func (r *Registry) breaker(origin string) *gobreaker.TwoStepCircuitBreaker[struct{}] {
	if b, ok := r.breakers.Get(origin); ok {
		return b
	}
	b := gobreaker.NewTwoStepCircuitBreaker[struct{}](gobreaker.Settings{
		Name:        origin,
		Timeout:     breakerPause,
		ReadyToTrip: func(c gobreaker.Counts) bool { return c.ConsecutiveFailures >= breakerFailures },
		IsExcluded:  func(err error) bool { return errors.Is(err, errIgnored) },
		OnStateChange: func(origin string, from, to gobreaker.State) {
			r.log.Info("upstream circuit breaker", "upstream", r.cfg.Name, "origin", origin, "from", from.String(), "to", to.String())
			if e := r.own(origin); e != nil {
				e.setUp(to == gobreaker.StateClosed)
			}
		},
	})
	if before, ok, _ := r.breakers.PeekOrAdd(origin, b); ok {
		return before
	}
	if e := r.own(origin); e != nil {
		e.setUp(true)
	}
	return b
}

// own is the endpoint at origin; nil: it is a redirect's or a token server's.
func (r *Registry) own(origin string) *endpoint {
	for _, e := range r.endpoints {
		if e.origin == origin {
			return e
		}
	}
	return nil
}

// errResting: the origin has asked to be left alone for a while.
var errResting = fmt.Errorf("%w: not asked, for it said when to ask again", ErrUnavailable)

// maxRest bounds what one answer can do to all that comes from its origin.
const maxRest = 5 * time.Minute

// heed lets an origin rest that says when to ask again (RFC 9110 section 10.2.3).
func (r *Registry) heed(ctx context.Context, origin string, resp *http.Response) {
	d := min(parseRetryAfter(resp.Header.Get("Retry-After"), time.Now()), maxRest)
	if d == 0 {
		return
	}
	r.rests.Add(origin, time.Now().Add(d))
	r.log.WarnContext(ctx, "upstream said when to ask again", "upstream", r.cfg.Name, "origin", origin, "status", resp.StatusCode, "seconds", d.Seconds())
}

// roundTrip sends one request and waits for the head of the answer; it follows
// nothing. The body returned fails after a silence of Timeouts.Progress and
// must be closed. Errors are ErrUnavailable, ErrTimeout, the context's,
// or ErrInvalid where the egress policy refuses.
func (r *Registry) roundTrip(ctx context.Context, op string, req *http.Request) (*http.Response, error) {
	if until, ok := r.rests.Get(origin(req.URL)); ok && time.Now().Before(until) {
		resting := r.fail(op, errResting, "%s", req.URL.Host)
		resting.RetryAfter = time.Until(until)
		return nil, resting
	}
	done, err := r.breaker(origin(req.URL)).Allow()
	if err != nil {
		return nil, r.fail(op, errNotAsked, "%s", req.URL.Host)
	}
	var sent atomic.Bool  // false while waiting for one of our own connections
	var wrote atomic.Bool // its header, before it was sent
	reqCtx, cancel := context.WithCancelCause(ctx)
	reqCtx = httptrace.WithClientTrace(reqCtx, &httptrace.ClientTrace{
		DNSStart:     func(httptrace.DNSStartInfo) { sent.Store(true) },
		ConnectStart: func(_, _ string) { sent.Store(true) },
		GotConn:      func(httptrace.GotConnInfo) { sent.Store(true) },
		WroteHeaders: func() { wrote.Store(true) },
	})
	req.Header.Set("User-Agent", userAgent)
	reqCtx, traced := r.traceRequest(reqCtx, op, req)
	r.pass(reqCtx, req)
	start := time.Now()
	var resp *http.Response
	if reqCtx, err = r.egress.route(reqCtx, req, r.transport.Proxy); err == nil {
		resp, err = r.transport.RoundTrip(req.WithContext(reqCtx))
	}
	took := time.Since(start)
	if err != nil {
		err = unquoted(err)
	}
	traced(resp, err)
	r.debug(ctx, op, req, resp, err, took)
	if err != nil {
		cancel(nil)
		refused, ok := errors.AsType[*refusal](err)
		switch {
		case ok: // nobody was asked
			done(errIgnored)
			if op != opPing { // the question itself will say it
				r.log.WarnContext(ctx, "egress refused", "upstream", r.cfg.Name, "op", op, "host", req.URL.Host, "reason", refused.Error())
			}
			return nil, r.fail(op, ErrInvalid, "%s", r.egress.told(refused))
		case errors.Is(ctx.Err(), context.Canceled), ctx.Err() != nil && !sent.Load(),
			errors.Is(err, syscall.EMFILE), errors.Is(err, syscall.ENFILE): // our own want of descriptors
			done(errIgnored)
			if wrote.Load() {
				r.metrics.requests.WithLabelValues(r.cfg.label(), op, "canceled").Inc() // which says nothing of its time
			}
		default:
			done(err)
			r.metrics.answered(r.cfg.label(), op, "error", took)
		}
		return nil, r.networkError(ctx, op, "asking "+req.URL.Host, err)
	}
	r.metrics.answered(r.cfg.label(), op, codeLabel(resp.StatusCode), took)
	if resp.StatusCode >= 500 && resp.StatusCode != http.StatusNotImplemented {
		done(fmt.Errorf("status %d", resp.StatusCode))
		r.heed(ctx, origin(req.URL), resp)
	} else {
		done(nil)
		if r.own(origin(req.URL)) != nil {
			r.metrics.lastSuccess.WithLabelValues(r.cfg.label()).SetToCurrentTime()
		}
	}
	resp.Body = newBody(ctx, reqCtx, cancel, r, op, resp)
	return resp, nil
}

// pass tells the registry which request of a client this one is for, and which trace. Nobody else
// is told: not where a redirect leads, nor a token server.
func (r *Registry) pass(ctx context.Context, req *http.Request) {
	if !slices.ContainsFunc(r.endpoints, func(e *endpoint) bool { return e.origin == origin(req.URL) }) {
		return
	}
	if id := RequestID(ctx); id != "" {
		req.Header.Set("X-Request-Id", id)
	}
	passTrace(ctx, req.Header)
}

// debug logs a request by its host alone: paths and queries may be signed.
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

// wire is a registry's roundTrip for libraries that speak to it: by its egress
// policy, and counted.
type wire struct{ registry *Registry }

func (w wire) RoundTrip(req *http.Request) (*http.Response, error) {
	return w.registry.roundTrip(req.Context(), opToken, req)
}
