package upstream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

var (
	errSilent  = errors.New("no byte within the progress deadline")
	errTrickle = fmt.Errorf("less than %d bytes within the progress deadline", leastProgress)
	errTooSlow = errors.New("not complete in time")
)

// leastProgress is how many bytes must arrive in Timeouts.Progress of waiting. By default
// that is 546 bytes a second: 100 MB would take two days, and 64 such downloads fill a link
// of 280 kbit/s. The operator of a link that slow sets a longer time.
const leastProgress = 16 << 10

// body is a response body with a progress deadline. A pause or a trickle closes the
// connection while a caller reads. Time in which no caller reads does not count.
type body struct {
	rc       io.ReadCloser
	ctx      context.Context // the caller's
	reqCtx   context.Context // the request's, a child of ctx
	cancel   context.CancelCauseFunc
	registry *Registry
	op       string
	gzipped  bool // according to the response header
	silence  *time.Timer
	whole    *time.Timer   // bounds the whole body; nil for blobs
	waited   time.Duration // by reads, since the last leastProgress bytes
	brought  int64         // bytes read in that time
	tooSlow  func()        // called after a pause or trickle; may be nil
	broke    func()        // called when the body fails; may be nil
	from     *endpoint     // the URL that answered; nil for tokens and pings

	fetched prometheus.Counter // nil until the response is accepted
	left    int64              // bytes that may still come; -1: any number
	missing int64              // bytes that must still come
	ends    []func()           // called once, at the end
	once    sync.Once
}

// after makes end call f, at the end of the body. It is not for concurrent use.
func (b *body) after(f func()) { b.ends = append(b.ends, f) }

func newBody(ctx, reqCtx context.Context, cancel context.CancelCauseFunc, r *Registry, op string, resp *http.Response) *body {
	b := &body{rc: resp.Body, ctx: ctx, reqCtx: reqCtx, cancel: cancel, registry: r, op: op, gzipped: isGzip(resp.Header), left: -1}
	b.silence = time.AfterFunc(r.cfg.Timeouts.Progress, func() { cancel(errSilent) })
	b.silence.Stop()
	if resp.StatusCode >= 300 {
		b.bound(shortBodyTime)
	}
	return b
}

// shortBodyTime bounds the reading of an error or redirect page.
const shortBodyTime = 5 * time.Second

// bound makes the body fail unless it is complete within d.
func (b *body) bound(d time.Duration) {
	b.whole = time.AfterFunc(d, func() { b.cancel(errTooSlow) })
}

// Read returns io.EOF at the end upstream announced, or an *Error.
func (b *body) Read(p []byte) (int, error) {
	if b.trickles() {
		b.cancel(errTrickle)
		return 0, b.broken(errTrickle)
	}
	start := time.Now()
	b.silence.Reset(b.registry.cfg.Timeouts.Progress)
	n, err := b.rc.Read(p)
	b.silence.Stop()
	b.waited += time.Since(start)
	b.brought += int64(n)
	if b.fetched != nil {
		b.fetched.Add(float64(n))
	}
	if b.left >= 0 {
		if int64(n) > b.left {
			n = int(b.left)
			err = b.registry.fail(b.op, ErrInvalid, "longer than %d bytes", MaxManifestSize)
		}
		b.left -= int64(n)
	}
	b.missing -= int64(n)
	if err == nil {
		return n, nil
	}
	if err == io.EOF && b.missing > 0 { //nolint:errorlint // net/http returns a plain EOF if the response itself has no length
		err = io.ErrUnexpectedEOF
	}
	if err == io.EOF { //nolint:errorlint // a wrapped one is a broken connection
		b.end()
		return n, io.EOF
	}
	if cause := context.Cause(b.reqCtx); cause != nil {
		err = errors.Join(cause, err)
	}
	return n, b.broken(err)
}

// trickles reports whether reads have waited for Timeouts.Progress without leastProgress
// bytes.
func (b *body) trickles() bool {
	if b.brought >= leastProgress {
		b.waited, b.brought = 0, 0
	}
	return b.waited >= b.registry.cfg.Timeouts.Progress
}

// broken returns the error of a body that ends too early.
func (b *body) broken(err error) error {
	if b.tooSlow != nil && (errors.Is(err, errSilent) || errors.Is(err, errTrickle)) {
		b.tooSlow()
	}
	if b.broke != nil && b.ctx.Err() == nil {
		b.broke()
	}
	return b.registry.networkError(b.ctx, b.op, "reading the body", err)
}

// Close ends the download; the connection is reused only if the body was read
// to its end.
func (b *body) Close() error {
	err := b.rc.Close()
	b.end()
	return err
}

func (b *body) end() {
	b.once.Do(func() {
		b.silence.Stop()
		if b.whole != nil {
			b.whole.Stop()
		}
		b.cancel(nil)
		for _, f := range b.ends {
			f()
		}
	})
}
