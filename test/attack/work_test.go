package attack

import (
	"context"
	"fmt"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	ut "github.com/cachalot-registry/cachalot/upstream/upstreamtest"
	"github.com/opencontainers/go-digest"
)

// TestWork_HangUps: clients that hang up leave a bounded number of requests to a slow registry.
func TestWork_HangUps(t *testing.T) {
	s := lay(t, "")
	s.evil.Fault(ut.Match{}, ut.Delay(100*time.Millisecond))
	n := attempts(t, 5000)
	s.elsewhere(func() {
		flood(n, 64, 3250, func(i int) { hangUp(s.evil.URL, "127.0.0.2", fmt.Sprintf("/v2/a/b/manifests/t%d", i)) })
	})
	var most atomic.Int64
	s.during(func() {
		flood(n, 64, 3250, func(i int) {
			hangUp(s.URL, "127.0.0.2", fmt.Sprintf("/v2/evil.test/a/b/manifests/t%d", i))
			if i%1000 == 0 {
				most.Store(max(most.Load(), int64(s.Metrics(t)["go_goroutines"])))
			}
		})
	})
	if most.Load() > 10_000 {
		t.Errorf("%d goroutines", most.Load())
	}
	t.Logf("%d requests that hung up: at most %d goroutines; told to come back: %.0f", n, most.Load(), s.Metrics(t)["cachalot_busy_total"])
}

// TestWork_SlowBlobs: cold blobs of a registry that stalls take no slots of other registries.
func TestWork_SlowBlobs(t *testing.T) {
	s := lay(t, "")
	release := make(chan struct{})
	defer close(release)
	s.evil.Fault(ut.Match{Op: ut.GetBlob}, ut.StallAfter(1, release))
	n := attempts(t, 300)
	var blobs []ut.Content
	for i := range n {
		c := ut.NewContent("", ut.Random(uint64(1000+i), 1000))
		s.evil.AddBlob("a/b", c)
		blobs = append(blobs, c)
	}
	s.during(func() {
		flood(n, 64, asFast, func(i int) { hangUp(s.URL, "127.0.0.2", "/v2/evil.test/a/b/blobs/"+blobs[i].Digest.String()) })
		s.cold(40, "/v2/library/app/blobs/", s.hub, "library/app")
	})
}

// cold pulls n blobs that are not stored, and checks each.
func (s *siege) cold(n int, path string, of *ut.Registry, repo string) {
	s.t.Helper()
	served := 0
	for i := range n {
		c := ut.NewContent("", ut.Random(uint64(500_000+i), 20_000))
		of.AddBlob(repo, c)
		if err := s.get(s.t.Context(), http.DefaultClient, path+c.Digest.String(), c); err != nil {
			s.t.Errorf("a cold blob: %v", err)
			continue
		}
		served++
	}
	s.t.Logf("%d of %d cold blobs served", served, n)
}

// TestWork_BrokenRepository: a failing repository and a hanging tag do not open the breaker
// for the registry's other repositories.
func TestWork_BrokenRepository(t *testing.T) {
	s := lay(t, "tags: {fresh_for: 0s}")
	release := make(chan struct{})
	defer close(release)
	s.hub.Fault(ut.Match{Repo: "library/broken"}, ut.Status(http.StatusInternalServerError))
	s.hub.Fault(ut.Match{Repo: "library/hanging", Reference: "1"}, ut.Pause(release))
	var images []ut.Image
	for i := range 20 {
		images = append(images, s.hub.AddImage(fmt.Sprint("library/well", i), "1", ut.NewImage(uint64(2000+i), 1000)))
	}
	s.during(func() {
		ctx, stop := context.WithCancel(t.Context())
		var attackers sync.WaitGroup
		for i := range 2 {
			attackers.Go(func() {
				client := from(t, fmt.Sprint("127.0.0.", 2+i))
				for ctx.Err() == nil {
					_ = s.get(ctx, client, "/v2/library/broken/manifests/1", ut.Content{}) // it fails
					hang, leave := context.WithTimeout(ctx, 200*time.Millisecond)
					_ = s.get(hang, client, "/v2/library/hanging/manifests/1", ut.Content{}) // it hangs
					leave()
				}
			})
		}
		served := 0
		for range 3 {
			for i, img := range images {
				if err := s.get(t.Context(), http.DefaultClient, fmt.Sprintf("/v2/library/well%d/manifests/1", i), img.Index); err != nil {
					t.Error(err)
					continue
				}
				served++
			}
		}
		stop()
		attackers.Wait()
		t.Logf("%d of %d other tags served", served, 3*len(images))
	})
	// Each tag was checked each time, and none was served unchecked.
	if n := s.Metrics(t)["cachalot_upstream_failing"]; n > 1 {
		t.Errorf("%v registries are taken to fail", n)
	}
}

// TestWork_HangingRepository: a repository that hangs leaves downloads, checks and
// connections to the registry's other repositories, also with many clients.
func TestWork_HangingRepository(t *testing.T) {
	s := lay(t, "")
	release := make(chan struct{})
	defer close(release)
	s.hub.Fault(ut.Match{Repo: "library/hanging"}, ut.Pause(release))
	clients := make([]*http.Client, 16)
	for i := range clients {
		clients[i] = from(t, fmt.Sprint("127.0.0.", 100+i))
	}
	images := make([]ut.Image, 20)
	for i := range images {
		images[i] = s.hub.AddImage("library/cold", fmt.Sprint(i), ut.NewImage(uint64(9000+i), 20_000))
	}
	n := attempts(t, 400)
	s.during(func() {
		flood(n, 100, asFast, func(i int) {
			ctx, leave := context.WithTimeout(t.Context(), 300*time.Millisecond)
			defer leave()
			path := fmt.Sprint("/v2/library/hanging/manifests/", i)
			if i%2 == 0 {
				path = "/v2/library/hanging/blobs/" + digest.FromString(fmt.Sprint("hangs ", i)).String()
			}
			_ = s.get(ctx, clients[i%len(clients)], path, ut.Content{}) // it hangs
		})
		begun, served := time.Now(), 0
		for i, img := range images {
			for path, want := range map[string]ut.Content{
				fmt.Sprint("/v2/library/cold/manifests/", i):                 img.Index,
				"/v2/library/cold/manifests/" + img.Manifest.Digest.String(): img.Manifest,
				"/v2/library/cold/blobs/" + img.Layers[0].Digest.String():    img.Layers[0],
			} {
				if err := s.get(t.Context(), http.DefaultClient, path, want); err != nil {
					t.Errorf("%s: %v", path, err)
					continue
				}
				served++
			}
		}
		t.Logf("%d of %d tags, manifests and blobs of another repository served, in %s", served, 3*len(images), time.Since(begun).Round(time.Millisecond))
		if took := time.Since(begun); took > 5*time.Second { // the hanging requests end after 20 s
			t.Errorf("another repository's images took %s", took)
		}
	})
}

// TestWork_Proofs: a registry must prove its claim to content with a download, and sends
// without end. The mirror reads at most the content's size, and only while a client waits.
func TestWork_Proofs(t *testing.T) {
	s := lay(t, "")
	s.evil.Fault(ut.Match{Op: ut.HeadBlob}, ut.Body("", s.secret.Bytes))
	s.evil.Fault(ut.Match{Op: ut.GetBlob}, ut.Endless())
	n := attempts(t, 300)
	var read atomic.Int64
	s.during(func() {
		flood(n, 32, asFast, func(i int) {
			ctx, leave := context.WithTimeout(t.Context(), 50*time.Millisecond)
			defer leave()
			if s.get(ctx, http.DefaultClient, fmt.Sprintf("/v2/evil.test/a/b%d/blobs/%s", i, s.secret.Digest), s.secret) == nil {
				read.Add(1)
			}
		})
	})
	t.Logf("%d of %d read what only an account may", read.Load(), n)
	if read.Load() > 0 {
		t.Error("a registry's word was enough")
	}
	s.rests()
}
