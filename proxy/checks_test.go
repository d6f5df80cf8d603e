package proxy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/cachalot-registry/cachalot/bounds"
	ut "github.com/cachalot-registry/cachalot/upstream/upstreamtest"
)

// TestChecks_Bound: checks are bounded in all, per registry and per client, and free their
// slots. A client that joins a check takes no slot.
func TestChecks_Bound(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newChecks(t.Context(), nil, 100, 0)
		release := make(chan struct{})
		ask := func(registry, client, key string) error {
			ctx, cancel := context.WithCancel(t.Context())
			cancel() // the client leaves at once
			_, err := once(ctx, c, question{op: key, holder: bounds.Holder{Group: registry, Client: client}}, func(context.Context) (int, error) {
				<-release
				return 1, nil
			})
			return err
		}
		busy := map[string]int{}
		for i := range 1000 {
			for _, by := range [][2]string{{"slow.example", "greedy"}, {"slow.example", "other"}, {"docker.io", "other"}} {
				if err := ask(by[0], by[1], fmt.Sprint(by[0], i)); errors.Is(err, errBusy) {
					busy[by[0]+" "+by[1]]++
				} else if !errors.Is(err, context.Canceled) {
					t.Fatal(err)
				}
			}
		}
		synctest.Wait()
		if n := c.places.Taken(); n < 2*18 || n > 2*25 {
			t.Errorf("%d checks of two registries that may have 25 each", n)
		}
		if busy["slow.example other"] == 0 || busy["docker.io other"] < 900 {
			t.Errorf("refused: %v", busy)
		}
		if err := ask("quay.io", "third", "x"); errors.Is(err, errBusy) {
			t.Error("a registry that is well has no place")
		}
		before := c.places.Taken()
		for range 10_000 {
			if err := ask("quay.io", "third", "x"); errors.Is(err, errBusy) {
				t.Fatal("who joins needs no place")
			}
		}
		if after := c.places.Taken(); after != before {
			t.Errorf("%d places taken before, %d after 10,000 clients that joined", before, after)
		}
		close(release)
		synctest.Wait()
		if n := c.places.Taken() + len(c.flying); n != 0 {
			t.Errorf("%d left behind", n)
		}
	})
}

// TestChecks_Abandoned: a check continues when its clients leave, so that the next client
// finds the result. A check with abandoned set ends when the last client leaves.
func TestChecks_Abandoned(t *testing.T) {
	t.Parallel()
	for _, abandoned := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			c := newChecks(t.Context(), nil, 0, 0)
			release, ended := make(chan struct{}), make(chan error, 2)
			var clients [2]context.CancelFunc
			var waiting sync.WaitGroup
			for i := range clients {
				var ctx context.Context
				ctx, clients[i] = context.WithCancel(t.Context())
				waiting.Go(func() {
					_, _ = once(ctx, c, question{op: "x", holder: bounds.Holder{Group: "r"}, abandoned: abandoned}, func(ctx context.Context) (int, error) {
						select {
						case <-release:
						case <-ctx.Done():
						}
						ended <- context.Cause(ctx)
						return 0, nil
					})
				})
			}
			synctest.Wait()
			clients[0]()
			synctest.Wait()
			if len(ended) > 0 {
				t.Error("ended while one waits")
			}
			clients[1]()
			synctest.Wait()
			if got := len(ended) > 0; got != abandoned {
				t.Errorf("abandoned %v: ended %v", abandoned, got)
			}
			close(release)
			waiting.Wait()
			if err := <-ended; abandoned != errors.Is(err, errAbandoned) {
				t.Errorf("abandoned %v: %v", abandoned, err)
			}
			c.running.Wait()
		})
	}
}

// A client that gets no slot for a check gets 503 with Retry-After. Stored content is served.
func TestChecks_Refused(t *testing.T) {
	t.Parallel()
	up := ut.New(t, ut.Options{})
	kept := up.AddImage("library/kept", "1", ut.NewImage(64, 1000))
	up.AddImage("library/new", "1", ut.NewImage(65, 1000))
	m := newMirror(t, func(c *Config) { c.MaxChecks, c.FreshFor = 1, 0 }, registry(t, "docker.io", up.URL))
	m.want(m.get("/v2/library/kept/manifests/1"), kept.Index)
	release := m.proxy.hold(t)
	a := m.get("/v2/library/new/manifests/1")
	m.wantError(a, http.StatusServiceUnavailable, "TOOMANYREQUESTS")
	if a.header.Get("Retry-After") != "5" {
		t.Errorf("Retry-After %q", a.header.Get("Retry-After"))
	}
	m.want(m.get("/v2/library/kept/manifests/1"), kept.Index)
	release()
	if a := m.get("/v2/library/new/manifests/1"); a.status != http.StatusOK {
		t.Errorf("%d %s", a.status, a.body)
	}
}

// Manifests and lists that do not fit into memory are refused. The refusal does not count
// as the registry's failure. Smaller ones are served.
func TestMemory_Refused(t *testing.T) {
	t.Parallel()
	up := ut.New(t, ut.Options{})
	small := up.AddImage("library/small", "1", ut.NewImage(67, 1000))
	large := ut.NewImage(68, 1000)
	large.Index.Bytes = append(large.Index.Bytes, bytes.Repeat([]byte(" "), 1<<20)...)
	large.Index = ut.NewContent(large.Index.MediaType, large.Index.Bytes)
	up.AddImage("library/large", "1", large)
	up.Fault(ut.Match{Op: ut.HeadManifest}, ut.Status(http.StatusMethodNotAllowed)) // so that only GET returns the digest
	memory := bounds.NewMemory(1<<20, bounds.DefaultShare)
	m := newMirror(t, func(c *Config) { c.Memory, c.FreshFor = memory, 0 }, registry(t, "docker.io", up.URL))
	up.AddManifest("library/large", large.Index, "2", "3", "4", "5", "6", "7")
	var clients sync.WaitGroup
	for tag := range 7 { // more than the breaker's limit of failures
		clients.Go(func() {
			a := m.get(fmt.Sprint("/v2/library/large/manifests/", tag+1))
			m.wantError(a, http.StatusServiceUnavailable, "TOOMANYREQUESTS")
			if a.header.Get("Retry-After") == "" {
				t.Error("no Retry-After")
			}
		})
	}
	clients.Wait()
	m.want(m.get("/v2/library/small/manifests/1"), small.Index)
	tags := make([]string, 20_000)
	for i := range tags {
		tags[i] = fmt.Sprint("tag-", i)
	}
	up.AddManifest("library/many", small.Manifest, tags...)
	a := m.get("/v2/library/many/tags/list")
	m.wantError(a, http.StatusServiceUnavailable, "TOOMANYREQUESTS")
	if n := memory.Taken(); n != 0 {
		t.Errorf("%d bytes are taken at rest", n)
	}
}

// hold takes the slot of a check.
func (p *Proxy) hold(t *testing.T) (release func()) {
	t.Helper()
	gate, begun := make(chan struct{}), make(chan struct{})
	var held sync.WaitGroup
	held.Go(func() {
		_, _ = once(t.Context(), p.checks, question{op: "held"}, func(context.Context) (int, error) {
			close(begun)
			<-gate
			return 0, nil
		})
	})
	<-begun
	return func() {
		close(gate)
		held.Wait()
	}
}
