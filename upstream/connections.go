package upstream

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptrace"
	"sync/atomic"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"

	"github.com/cachalot-registry/cachalot/bounds"
	"github.com/cachalot-registry/cachalot/task"
)

const (
	// idleLong is the idle time after which a reused connection may be dead without a
	// sign: a firewall has dropped it, or its server is gone.
	idleLong = time.Second
	// deadAfter is how long a request over such a connection waits for its response
	// before it is sent over a new one too.
	deadAfter = 3 * time.Second
	// dropPause is the least time before a failed server drops all idle connections again.
	dropPause = 3 * time.Second
	// maxFresh bounds the connections to a host that replace possibly dead ones.
	maxFresh = 8
)

// connections sends requests over reused connections, and over new ones if those may be
// dead or lead to a server that has been replaced: a name is resolved for a new connection
// only.
type connections struct {
	kept    *http.Transport
	fresh   *http.Transport // each request has a connection of its own
	doubted atomic.Bool     // a server has failed: the idle ones are dropped before the next request
	dropped atomic.Int64    // Unix nanoseconds of the last drop

	places *lru.Cache[string, *bounds.Bulkhead] // by host: a place for each request under way
}

func newConnections(t *http.Transport) (*connections, error) {
	fresh := t.Clone()
	fresh.DisableKeepAlives, fresh.MaxConnsPerHost = true, maxFresh
	places, err := lru.New[string, *bounds.Bulkhead](maxOrigins)
	if err != nil {
		return nil, fmt.Errorf("make cache of connections: %w", err)
	}
	return &connections{kept: t, fresh: fresh, places: places}, nil
}

// enter waits for one of the connections to a host. A repository that hangs leaves some of
// them to the others. leave gives the connection back.
func (c *connections) enter(ctx context.Context, host, repo string) (leave func(), err error) {
	places, ok := c.places.Get(host)
	if !ok {
		places = bounds.NewBulkhead(c.kept.MaxConnsPerHost, bounds.DefaultShare)
		if before, ok, _ := c.places.PeekOrAdd(host, places); ok {
			places = before
		}
	}
	return enter(ctx, places, repo)
}

// enter waits for a place for a repository; leave gives it back.
func enter(ctx context.Context, places *bounds.Bulkhead, repo string) (leave func(), err error) {
	ready, leave := places.Queue(bounds.Holder{Repository: repo})
	select {
	case <-ready:
		return leave, nil
	case <-ctx.Done():
		leave()
		return nil, context.Cause(ctx)
	}
}

// doubt makes roundTrip drop the idle connections before the next request.
func (c *connections) doubt() { c.doubted.Store(true) }

func (c *connections) drop() {
	c.dropped.Store(time.Now().UnixNano())
	c.doubted.Store(false)
	c.kept.CloseIdleConnections()
}

// close closes idle connections. Bodies that are being read are not touched.
func (c *connections) close() { c.kept.CloseIdleConnections() }

// roundTrip sends a request, and waits for the header of the response.
func (c *connections) roundTrip(req *http.Request) (*http.Response, error) {
	if c.doubted.Load() && time.Since(time.Unix(0, c.dropped.Load())) > dropPause {
		c.drop()
	}
	if req.Body != nil { // a body can be sent only once
		return c.kept.RoundTrip(req)
	}
	type reply struct {
		resp *http.Response
		err  error
	}
	idle := make(chan struct{}, 1) // the request uses a connection that was idle for longer than idleLong
	send := func(t *http.Transport) (<-chan reply, context.CancelFunc) {
		ctx, cancel := context.WithCancel(req.Context()) // after a success it ends with req's context
		ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: func(i httptrace.GotConnInfo) {
			if i.Reused && i.IdleTime > idleLong {
				select {
				case idle <- struct{}{}:
				default: // the transport has retried the request
				}
			}
		}})
		ch := make(chan reply, 1)
		go func() {
			var got reply
			got.err = task.Try("request", func() (err error) {
				got.resp, err = t.RoundTrip(req.Clone(ctx)) //nolint:bodyclose // the receiver of the reply closes it
				return err
			})
			ch <- got
		}()
		return ch, cancel
	}
	kept, leaveKept := send(c.kept)
	var dead <-chan time.Time
	for dead == nil {
		select {
		case got := <-kept:
			if got.err != nil {
				leaveKept()
			}
			return got.resp, got.err
		case <-idle:
			dead = time.After(deadAfter)
		}
	}
	var fresh <-chan reply
	var leaveFresh context.CancelFunc
	late := func(ch <-chan reply, leave context.CancelFunc) { // discards a reply
		leave()
		if got := <-ch; got.err == nil {
			got.resp.Body.Close()
		}
	}
	for {
		select {
		case <-dead:
			fresh, leaveFresh = send(c.fresh)
		case got := <-kept:
			if got.err != nil {
				leaveKept()
				if kept = nil; fresh != nil {
					continue
				}
			} else if fresh != nil {
				go task.Guard("end of a request", func() { late(fresh, leaveFresh) })()
			}
			return got.resp, got.err
		case got := <-fresh:
			if got.err != nil {
				leaveFresh()
				if fresh = nil; kept != nil {
					continue
				}
				return got.resp, got.err
			}
			c.drop()
			if kept != nil {
				go task.Guard("end of a request", func() { late(kept, leaveKept) })()
			}
			return got.resp, nil
		}
	}
}
