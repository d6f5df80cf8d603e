//go:build e2e

package e2e

import (
	"crypto/sha256"
	"encoding/hex"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cachalot-registry/cachalot/upstream/upstreamtest"
)

const (
	// Docker Hub has no such repository.
	repository = "library/cachalot-e2e"
	image      = "docker.io/" + repository + ":latest"

	forEver = time.Hour   // a fresh_for that no test outlives
	shortly = time.Second // and one that it waits for
)

// client pulls images through a mirror.
type client interface {
	pull(t *testing.T, image string) error
	// holds compares what the client has with what was pushed.
	holds(t *testing.T, image string, want upstreamtest.Image)
	// remove makes the next pull a whole one.
	remove(t *testing.T, image string)
}

// opened is a constructor of one kind of client as one of any kind.
func opened[C client](open func(*testing.T, *mirror) C) func(*testing.T, *mirror) client {
	return func(t *testing.T, m *mirror) client { t.Helper(); return open(t, m) }
}

// runner is a client that runs containers.
type runner interface {
	run(t *testing.T, image string, command ...string) (stdout string)
}

func hub(t *testing.T) *upstreamtest.Distribution {
	t.Helper()
	return upstreamtest.NewDistribution(t, upstreamtest.DistributionOptions{Auth: upstreamtest.Bearer})
}

func asHub(url string) map[string]string { return map[string]string{"docker.io": "{url: " + url + "}"} }

// TestPull: what a pull costs the upstream, with each client, from the first one
// on until the upstream is gone.
func TestPull(t *testing.T) {
	t.Parallel()
	for name, with := range map[string]struct {
		types    mediaTypes
		client   func(*testing.T, *mirror) client
		attested bool // whether the client pulls attestations
	}{
		"docker20": {types: dockerTypes(), client: opened(docker20)},
		"docker29": {types: ociTypes(), client: opened(docker29), attested: true},
		"podman":   {types: ociTypes(), client: opened(newPodman)},
		"buildah":  {types: dockerTypes(), client: opened(newBuildah)},
		"skopeo":   {types: ociTypes(), client: opened(newSkopeo)},
		"crane":    {types: dockerTypes(), client: opened(newCrane)},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			up := hub(t)
			m := newMirror(t, forEver, asHub(up.URL))
			s := &scenario{up: up, mirror: m, client: with.client(t, m), attested: with.attested}
			s.play(t, newRelease(t, with.types, "one"), newRelease(t, with.types, "two"))
		})
	}
}

type scenario struct {
	up       *upstreamtest.Distribution
	mirror   *mirror
	client   client
	attested bool
}

func (s *scenario) play(t *testing.T, one, two release) {
	t.Helper()
	one.publish(s.up, repository, "latest")
	s.up.Forget()

	s.pull(t, "cold", one, s.plus(one, wire{
		Tokens: 1, Refused: 1, Heads: 1, Manifests: 2, Blobs: 5, Bytes: one.Size(),
	}), "miss", "collapsed", "hit")
	s.pull(t, "warm", one, wire{}, "hit")

	// A reload forgets the token, and what it knew of the upstream.
	s.mirror.reload(t, shortly)
	time.Sleep(shortly) // until the tag is to be checked
	s.pull(t, "revalidated", one, wire{Tokens: 1, Refused: 1, Heads: 1}, "revalidated", "hit")

	two.publish(s.up, repository, "latest")
	s.up.Forget()
	time.Sleep(shortly)
	changed := two.Index.Size + two.Manifest.Size + two.Config.Size + two.Layers[3].Size
	s.pull(t, "moved", two, s.plus(two, wire{Heads: 1, Manifests: 2, Blobs: 2, Bytes: changed}), "miss", "collapsed", "hit")

	s.up.Down()
	time.Sleep(shortly)
	s.pull(t, "gone", two, wire{}, "stale", "hit")

	s.mirror.kill()
	s.mirror.start(t)
	s.pull(t, "restarted while gone", two, wire{}, "stale", "hit")
}

// plus adds what the attestation costs.
func (s *scenario) plus(r release, w wire) wire {
	if s.attested {
		w.Manifests++
		w.Blobs += 2
		w.Bytes += r.attestation.Size()
	}
	return w
}

// pull pulls all of an image anew, and compares what that cost, what the mirror
// says of it and what came of it. The first of results is that of the tag, the
// others are those that further requests may have.
func (s *scenario) pull(t *testing.T, step string, want release, cost wire, results ...string) {
	t.Helper()
	before := s.mirror.metrics(t)
	started := time.Now()
	check(t, s.client.pull(t, image))
	took := time.Since(started)
	got, requests := crossed(&s.up.Recorder)
	metrics := s.mirror.metrics(t).since(before)

	t.Logf("%s: %.2fs; upstream: %+v; results: %v", step, took.Seconds(), got, metrics.sum("cachalot_requests_total", "result"))
	if s.attested && cost.Heads > 0 { // the list of its referrers is checked like a tag
		cost.Referrers = got.Referrers
	}
	if got != cost {
		t.Errorf("%s: the upstream's wire: %+v, want %+v", step, got, cost)
		report(t, requests)
	}
	counts := metrics.sum("cachalot_requests_total", "result")
	if counts[results[0]] == 0 {
		t.Errorf("%s: no request with the result %s", step, results[0])
	}
	for result, n := range counts {
		if !slices.Contains(results, result) {
			t.Errorf("%s: %d requests with the result %s, want only %v", step, n, result, results)
		}
	}
	if n := total(metrics.sum("cachalot_fetched_bytes_total", "kind")); n != got.Bytes {
		t.Errorf("%s: cachalot_fetched_bytes_total went up by %d, the wire carried %d", step, n, got.Bytes)
	}
	var blobs int64
	for _, b := range want.Blobs() {
		blobs += b.Size
	}
	if n := metrics.sum("cachalot_served_bytes_total", "kind")["blob"]; n < blobs {
		t.Errorf("%s: the client was served %d bytes of blobs, the image has %d", step, n, blobs)
	}

	s.client.holds(t, image, want.Image)
	if r, ok := s.client.(runner); ok {
		runs(t, r, want)
	}
	s.client.remove(t, image)
}

// runs runs a container of the image and reads its layers there.
func runs(t *testing.T, r runner, want release) {
	t.Helper()
	const script = "/bin/busybox cat /version /etc/passwd; /bin/busybox sha256sum /payload"
	got := strings.Fields(r.run(t, image, "/bin/busybox", "sh", "-c", script))
	payload := sha256.Sum256(upstreamtest.Random(1, payloadSize))
	if want := []string{want.version, passwd, hex.EncodeToString(payload[:]), "/payload"}; !slices.Equal(got, want) {
		t.Errorf("the container says %q, want %q", got, want)
	}
}

func total(sums map[string]int64) (n int64) {
	for v := range maps.Values(sums) {
		n += v
	}
	return n
}
