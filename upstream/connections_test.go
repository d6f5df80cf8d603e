package upstream

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"
)

// moving is the server that a name resolves to, and the number of connections.
type moving struct {
	to   atomic.Pointer[http.HandlerFunc]
	made atomic.Int64
}

// dial connects to the server that the name resolves to now.
func (m *moving) dial(t *testing.T) func(context.Context, string, string) (net.Conn, error) {
	t.Helper()
	return func(context.Context, string, string) (net.Conn, error) {
		m.made.Add(1)
		client, server := net.Pipe()
		h := *m.to.Load()
		l := &lines{conns: make(chan net.Conn, 1), ended: make(chan struct{})}
		l.conns <- server
		s := &http.Server{Handler: h}
		go func() { _ = s.Serve(l) }()
		t.Cleanup(func() { _ = s.Close() })
		return client, nil
	}
}

// TestConnections_NameMoves: idle connections to a replaced server, and dead ones, are detected
// within seconds (L5).
func TestConnections_NameMoves(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"the old server says 503", "kept connections are dead"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				r := served(t, func(http.ResponseWriter, *http.Request) {})
				m := &moving{}
				o := newOdd(nil)
				var gone atomic.Bool
				old := http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
					switch {
					case !gone.Load():
						o.ServeHTTP(w, req)
					case name == "the old server says 503":
						w.WriteHeader(http.StatusServiceUnavailable)
					default:
						<-req.Context().Done()
					}
				})
				m.to.Store(&old)
				for _, transport := range []*http.Transport{r.connections.kept, r.connections.fresh} {
					transport.Proxy, transport.DialContext = nil, m.dial(t)
				}
				r.connections.kept.DisableKeepAlives = false
				open := func(n int) error {
					c, err := r.Open(t.Context(), KindBlob, repo, digest.FromString(fmt.Sprint(n)), Span{})
					if err != nil {
						return err
					}
					defer c.Body.Close()
					_, err = io.Copy(io.Discard, c.Body)
					return err
				}
				held := make([]*Content, 35) // as many as one repository may use
				for i := range held {
					var err error
					if held[i], err = r.Open(t.Context(), KindBlob, repo, digest.FromString(fmt.Sprint(i)), Span{}); err != nil {
						t.Fatal(err)
					}
				}
				for _, c := range held {
					_, _ = io.Copy(io.Discard, c.Body)
					_ = c.Body.Close()
				}
				time.Sleep(5 * time.Second)
				gone.Store(true)
				moved := http.HandlerFunc(newOdd(nil).ServeHTTP)
				m.to.Store(&moved)
				begun, failed := time.Now(), 0
				for i := range 30 {
					if open(100+i) != nil {
						failed++
					}
					if i == 0 {
						if took := time.Since(begun); took > 10*time.Second {
							t.Errorf("the first took %s", took)
						}
					}
				}
				if took := time.Since(begun); failed > 1 || took > 10*time.Second {
					t.Errorf("%d of 30 failed, in %s", failed, took)
				}
			})
		})
	}
}

// TestConnections_RepositoryHangs: requests to a repository that does not answer, or not to the
// end, do not delay blobs, manifests and tags of another one.
func TestConnections_RepositoryHangs(t *testing.T) {
	t.Parallel()
	for name, begin := range map[string]bool{"no answer": false, "no end": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				o := newOdd(func(w http.ResponseWriter, req *http.Request) bool {
					hangs := strings.HasPrefix(req.URL.Path, "/v2/hangs/")
					if hangs {
						if begin {
							w.Header().Set("Content-Length", "1000")
							_ = http.NewResponseController(w).Flush()
						}
						<-req.Context().Done()
					}
					return hangs
				})
				r := served(t, o.ServeHTTP)
				ctx, leave := context.WithCancel(t.Context())
				var asking sync.WaitGroup
				for i := range 200 {
					asking.Go(func() {
						kind := []Kind{KindBlob, KindManifest}[i%2]
						c, err := r.Open(ctx, kind, "hangs/app", digest.FromString(fmt.Sprint(i)), Span{})
						if err == nil {
							_, _ = io.Copy(io.Discard, c.Body)
							c.Body.Close()
						}
					})
				}
				synctest.Wait()
				begun := time.Now()
				for i := range 5 {
					c, err := r.Open(t.Context(), KindBlob, repo, digest.FromString(fmt.Sprint(i)), Span{})
					if err != nil {
						t.Fatal(err)
					}
					if _, err := io.Copy(io.Discard, c.Body); err != nil {
						t.Error(err)
					}
					c.Body.Close()
					if _, err := r.Resolve(t.Context(), repo, fmt.Sprint("tag", i)); err != nil {
						t.Error(err)
					}
				}
				if took := time.Since(begun); took != 0 {
					t.Errorf("it took %s", took)
				}
				leave()
				asking.Wait()
			})
		})
	}
}
