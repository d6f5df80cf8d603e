package process

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/cachalot-registry/cachalot/test/cachalotd"
	ut "github.com/cachalot-registry/cachalot/upstream/upstreamtest"
)

// TestHealthyBesideSick: healthy content is served, whatever else is sick, with
// CACHALOT_TEST_HEALTHY layers each. The test logs their time, with the sickness and alone.
func TestHealthyBesideSick(t *testing.T) {
	t.Parallel()
	layers := count(t, "CACHALOT_TEST_HEALTHY", 50)
	for name, sicken := range map[string]func(s *sickbed){
		"an object fails":    (*sickbed).failObject,
		"a registry stalls":  (*sickbed).stallRegistry,
		"a tag hangs":        (*sickbed).hangTag,
		"a login is refused": (*sickbed).refuseLogin,
	} {
		t.Run(name, func(t *testing.T) {
			s := newSickbed(t)
			alone := s.pull(layers)
			ctx, stop := context.WithCancel(t.Context())
			s.ctx = ctx
			sicken(s)
			beside := s.pull(layers)
			stop()
			s.sick.Wait()
			t.Logf("%d healthy layers, p50 and p99 alone %s, %s; beside %s, %s", layers, at(alone, 50), at(alone, 99), at(beside, 50), at(beside, 99))
		})
	}
}

// at returns a percentile.
func at(took []time.Duration, percent int) time.Duration {
	slices.Sort(took)
	return took[(len(took)-1)*percent/100].Round(10 * time.Microsecond)
}

// sickbed is a mirror of a healthy registry and of a second one that gets sick.
type sickbed struct {
	t          *testing.T
	ctx        context.Context // ends with the sickness
	mirror     *server
	well, poor *ut.Registry
	client     *http.Client
	made       uint64
	sick       sync.WaitGroup
}

func newSickbed(t *testing.T) *sickbed {
	t.Helper()
	s := &sickbed{t: t, well: ut.New(t, ut.Options{}), poor: ut.New(t, ut.Options{Auth: ut.Bearer, Username: "ci", Password: "right"}), client: cachalotd.Client()}
	s.mirror = startConfig(t, fmt.Sprintf(`storage: {path: %s, min_free: 0}
tags: {fresh_for: 0s}
upstreams:
  docker.io: {url: %s}
  poor.test: {url: %s, username: ci, password: right}
`, t.TempDir(), s.well.URL, s.poor.URL))
	return s
}

// layer adds a layer to both registries.
func (s *sickbed) layer() ut.Content {
	s.made++
	c := ut.NewContent("", ut.Random(s.made, 64<<10))
	s.well.AddBlob("library/app", c)
	s.poor.AddBlob("library/app", c)
	return c
}

// pull fetches healthy layers, four at a time, and returns the time of each.
func (s *sickbed) pull(n int) (took []time.Duration) {
	s.t.Helper()
	var mu sync.Mutex // guards took
	var pulls sync.WaitGroup
	slots := make(chan struct{}, 4)
	for range n {
		c := s.layer()
		slots <- struct{}{}
		pulls.Go(func() {
			defer func() { <-slots }()
			begun := time.Now()
			status, body, err := s.get(s.t.Context(), "/v2/library/app/blobs/"+c.Digest.String())
			if err != nil || status != http.StatusOK || !bytes.Equal(body, c.Bytes) {
				s.t.Errorf("a healthy layer: %d, %v", status, err)
			}
			mu.Lock()
			defer mu.Unlock()
			took = append(took, time.Since(begun))
		})
	}
	pulls.Wait()
	return took
}

func (s *sickbed) get(ctx context.Context, path string) (status int, body []byte, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.mirror.URL+path, http.NoBody)
	if err != nil {
		return 0, nil, err
	}
	resp, err := s.client.Do(req)
	if err != nil {
		return 0, nil, err
	}
	defer resp.Body.Close()
	body, err = io.ReadAll(resp.Body)
	return resp.StatusCode, body, err
}

// poll requests a path repeatedly while the sickness lasts.
func (s *sickbed) poll(path string) {
	s.sick.Go(func() {
		for s.ctx.Err() == nil {
			_, _, _ = s.get(s.ctx, path) // the result does not matter
			select {
			case <-time.After(50 * time.Millisecond):
			case <-s.ctx.Done():
			}
		}
	})
}

// failObject: one object of the healthy registry fails (FIELD 21).
func (s *sickbed) failObject() {
	bad := s.layer()
	failing := s.well.Fault(ut.Match{Op: ut.GetBlob, Reference: bad.Digest.String()}, ut.Status(http.StatusInternalServerError))
	s.poll("/v2/library/app/blobs/" + bad.Digest.String())
	s.await(func() bool { return failing.Applied() >= 2 })
}

// stallRegistry: 300 downloads of another registry stop after 1,000 bytes. They take all of
// its 56 connections for blobs.
func (s *sickbed) stallRegistry() {
	stalled := s.poor.Fault(ut.Match{Op: ut.GetBlob}, ut.StallAfter(1000, nil))
	for range 300 {
		path := "/v2/library/app/blobs/" + s.layer().Digest.String() + "?ns=poor.test"
		s.sick.Go(func() { _, _, _ = s.get(s.ctx, path) })
	}
	s.await(func() bool { return stalled.Applied() >= 56 })
}

// hangTag: the checks of one tag of the healthy registry hang. Those of another tag, which
// moves, do not.
func (s *sickbed) hangTag() {
	for _, tag := range []string{"hangs", "moves"} {
		s.well.AddImage("library/app", tag, ut.NewImage(1<<32, 10))
		_, _, _ = s.get(s.ctx, "/v2/library/app/manifests/"+tag)
	}
	hanging := s.well.Fault(ut.Match{Reference: "hangs"}, ut.BlackHole())
	s.poll("/v2/library/app/manifests/hangs")
	s.await(func() bool { return hanging.Applied() >= 1 })
	for n := range uint64(3) {
		moved := s.well.AddImage("library/app", "moves", ut.NewImage(1<<32+1+n, 10))
		s.await(func() bool {
			_, body, _ := s.get(s.ctx, "/v2/library/app/manifests/moves")
			return bytes.Equal(body, moved.Index.Bytes)
		})
	}
}

// refuseLogin: another registry refuses the account, and clients request many tags.
func (s *sickbed) refuseLogin() {
	refused := s.poor.Fault(ut.Match{Op: ut.Token}, ut.Status(http.StatusUnauthorized))
	for n := range 8 {
		s.poll(fmt.Sprintf("/v2/library/app/manifests/v%d?ns=poor.test", n))
	}
	s.await(func() bool { return refused.Applied() >= 1 })
}

func (s *sickbed) await(ok func() bool) {
	s.t.Helper()
	limit := time.After(time.Minute)
	pace := time.NewTicker(5 * time.Millisecond)
	defer pace.Stop()
	for !ok() {
		select {
		case <-pace.C:
		case <-limit:
			s.t.Fatal("it does not happen")
		}
	}
}
