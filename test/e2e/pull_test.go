//go:build e2e

package e2e

import (
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/cachalot-registry/cachalot/upstream/distributiontest"
	"github.com/cachalot-registry/cachalot/upstream/upstreamtest"
)

const (
	forEver = time.Hour   // a fresh_for longer than any test
	shortly = time.Second // a fresh_for short enough to wait for
)

// tries is the maximum of requests to a registry that is down, for a check: a ping, one
// HEAD and three GETs.
const tries = 5

// client pulls images through a mirror.
type client interface {
	pull(t *testing.T, image string) error
	// holds compares the client's content with the pushed content.
	holds(t *testing.T, image string, want upstreamtest.Image)
	// remove removes the image, so that the next pull is complete.
	remove(t *testing.T, image string)
}

// opened converts a constructor's result to client.
func opened[C client](open func(*testing.T, *mirror) C) func(*testing.T, *mirror) client {
	return func(t *testing.T, m *mirror) client { t.Helper(); return open(t, m) }
}

// runner is a client that runs containers.
type runner interface {
	run(t *testing.T, image string, command ...string) (stdout string)
}

func hub(t *testing.T) *distributiontest.Registry {
	t.Helper()
	return distributiontest.New(t, distributiontest.Options{Auth: upstreamtest.Bearer})
}

func asHub(url string) map[string]string { return map[string]string{"docker.io": "{url: " + url + "}"} }

// TestPull: each client pulls from two registries through one mirror, from cold until both
// are down. The content must match the pushed content, and the registries' traffic must
// match the expected cost.
//
// Each client has exactly the configuration that "cachalot client" prints, except
// docker29-flag and clients without mirror support. Those name the mirror in the image's
// name, as dockerd does for registries other than Docker Hub.
func TestPull(t *testing.T) {
	t.Parallel()
	for name, with := range map[string]struct {
		types  mediaTypes
		client func(*testing.T, *mirror) client
		also   func(release) wire // content that the client pulls besides its platform's image
		ranges bool               // the client fetches layers in ranges
	}{
		"docker20":       {types: dockerTypes(), client: opened(dockerWithJSON)},
		"docker20-build": {types: dockerTypes(), client: opened(classicBuilder)},
		"docker29":       {types: ociTypes(), client: opened(dockerWithHosts), also: attested},
		"docker29-flag":  {types: dockerTypes(), client: opened(docker29), also: attested},
		"docker29-build": {types: ociTypes(), client: opened(buildkitBuilder)},
		"containerd":     {types: ociTypes(), client: opened(newContainerd), also: everyConfig, ranges: true},
		"buildkit":       {types: ociTypes(), client: opened(newBuildkit)},
		"podman":         {types: ociTypes(), client: opened(newPodman)},
		"buildah":        {types: dockerTypes(), client: opened(newBuildah)},
		"skopeo":         {types: ociTypes(), client: opened(newSkopeo)},
		"crane":          {types: dockerTypes(), client: opened(newCrane)},
		"transport":      {types: ociTypes(), client: opened(newTransport)},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := &scenario{sources: sources(t, with.types), also: with.also}
			s.mirror = &mirror{upstreams: upstreams(s.sources), negativeFor: forEver} // also for referrers, which do not exist
			s.mirror.open(t, forEver)
			s.tap = wiretap(t, s.mirror)
			s.client = with.client(t, s.mirror)
			s.play(t)
			if with.ranges {
				s.inRanges(t)
			}
		})
	}
}

// attested is the cost of the attestation and the referrers: one request to the API, which
// the registry lacks, and one for the fallback tag.
func attested(r release) wire {
	return wire{
		Manifests: 1, Blobs: len(r.attestation.Blobs()), Bytes: r.attestation.Size(),
		Referrers: 2,
	}
}

// everyConfig is the cost of the index's other images without layers: ctr reads their platforms.
func everyConfig(r release) (w wire) {
	for _, img := range []upstreamtest.Image{r.other, r.attestation} {
		w = w.plus(wire{Manifests: 1, Blobs: 1, Bytes: img.Manifest.Size + img.Config.Size})
	}
	return w
}

type scenario struct {
	sources []source
	mirror  *mirror
	tap     *tap
	client  client
	also    func(release) wire
}

func (s *scenario) play(t *testing.T) {
	t.Helper()
	first := func(s source) release { return s.one }
	second := func(s source) release { return s.two }

	for _, from := range s.sources {
		from.publish(from.one)
	}
	s.pull(t, "cold", first, func(from source) wire {
		return from.met().plus(wire{
			Heads: 1, Manifests: 2, Blobs: len(from.one.Blobs()), Bytes: from.one.Size(),
		}).plus(s.extra(from.one))
	}, "miss", "collapsed", "hit")
	s.pull(t, "warm", first, nothing, "hit")

	// A reload drops the tokens and the state of the upstreams.
	s.mirror.reload(t, shortly)
	time.Sleep(shortly) // until the tags are stale
	s.pull(t, "revalidated", first, func(from source) wire {
		return from.met().plus(wire{Heads: 1, Referrers: s.extra(from.one).Referrers})
	}, "revalidated", "hit")

	for _, from := range s.sources {
		from.publish(from.two)
	}
	time.Sleep(shortly)
	s.pull(t, "moved", second, func(from source) wire {
		version := from.two.Layers[len(from.two.Layers)-1]
		changed := from.two.Index.Size + from.two.Manifest.Size + from.two.Config.Size + version.Size
		return wire{Heads: 1, Manifests: 2, Blobs: 2, Bytes: changed}.plus(s.extra(from.two))
	}, "miss", "collapsed", "hit")

	for _, from := range s.sources {
		from.Down()
	}
	time.Sleep(shortly)
	s.pull(t, "gone", second, nothing, "stale", "hit")

	s.mirror.kill()
	s.mirror.start(t)
	s.pull(t, "restarted while gone", second, nothing, "stale", "hit")
}

func nothing(source) wire { return wire{} }

func (s *scenario) extra(r release) wire {
	if s.also == nil {
		return wire{}
	}
	return s.also(r)
}

// pull pulls all images, and checks the traffic, the mirror's metrics and the content. The
// first of results is a tag's; other requests may have any of them.
func (s *scenario) pull(t *testing.T, step string, version func(source) release, cost func(source) wire, results ...string) {
	t.Helper()
	before := s.mirror.metrics(t)
	started := time.Now()
	for _, from := range s.sources {
		check(t, s.client.pull(t, from.image()))
	}
	took := time.Since(started)
	metrics := s.mirror.metrics(t).since(before)

	var sent, blobs int64
	for _, from := range s.sources {
		got, requests := crossed(&from.Recorder)
		if want := from.behind(cost(from)); got != want {
			t.Errorf("%s: the wire of %s: %+v, want %+v", step, from.name, got, want)
			report(t, requests)
		}
		sent += got.Bytes
		for _, b := range version(from).Blobs() {
			blobs += b.Size
		}
	}
	counts := metrics.sum("cachalot_requests_total", "result")
	for _, a := range s.tap.heard("") {
		if a.credential {
			t.Errorf("%s: %s %s carried a credential", step, a.method, a.path)
		}
	}
	t.Logf("%s: %.2fs; results: %v; asked upstream: %v", step, took.Seconds(), counts, metrics.sum("cachalot_upstream_requests_total", "code"))
	if counts[results[0]] < int64(len(s.sources)) {
		t.Errorf("%s: %d requests with the result %s, want one for each registry", step, counts[results[0]], results[0])
	}
	for result, n := range counts {
		if n > 0 && !slices.Contains(results, result) {
			t.Errorf("%s: %d requests with the result %s, want only %v", step, n, result, results)
		}
	}
	if n := metrics.sum("cachalot_upstream_requests_total", "code")["error"]; n > int64(tries*counts["stale"]) {
		t.Errorf("%s: %d attempts to reach the registries for %d tags", step, n, counts["stale"])
	}
	if n := total(metrics.sum("cachalot_fetched_bytes_total", "kind")); n != sent {
		t.Errorf("%s: cachalot_fetched_bytes_total went up by %d, the wires carried %d", step, n, sent)
	}
	if n := metrics.sum("cachalot_served_bytes_total", "kind")["blob"]; n < blobs {
		t.Errorf("%s: the client was served %d bytes of blobs, the images have %d", step, n, blobs)
	}
	for _, from := range s.sources {
		s.client.holds(t, from.image(), version(from).Image)
		if r, ok := s.client.(runner); ok {
			runs(t, r, from.image(), version(from))
		}
	}
	for _, from := range s.sources {
		s.client.remove(t, from.image())
	}
}

// inRanges checks that each pull requested the big layer in several ranges.
func (s *scenario) inRanges(t *testing.T) {
	t.Helper()
	starts := map[string]int{}
	for _, a := range s.tap.heard(s.sources[0].one.Layers[1].Digest.String()) {
		starts[a.span]++
	}
	t.Logf("the big layer was asked for in these ranges: %v", starts)
	const parts, pulls = payloadSize / rangeSize, 6
	often := 0
	for span, n := range starts {
		if !strings.HasPrefix(span, "bytes=") {
			t.Errorf("it was asked for without a range: %q", span)
		}
		if n >= pulls {
			often++
		}
	}
	if often < parts {
		t.Errorf("%d ranges were asked for in each pull, want %d", often, parts)
	}
}

// runs runs a container of the image and reads its layers.
func runs(t *testing.T, r runner, image string, want release) {
	t.Helper()
	const script = "/bin/busybox cat /version; /bin/busybox sha256sum /payload"
	out := r.run(t, image, "/bin/busybox", "sh", "-c", script)
	if out == "" {
		// dockerd may lose the output of a container that ends at once: its log then has
		// "copy stream failed: reading from a closed fifo".
		out = r.run(t, image, "/bin/busybox", "sh", "-c", script)
	}
	said := strings.Fields(out)
	if len(said) != 3 || said[0] != want.version || digest.NewDigestFromEncoded(digest.SHA256, said[1]) != want.payload {
		t.Errorf("the container says %q, want %s, and %s of its payload", out, want.version, want.payload)
	}
}

func total(sums map[string]int64) (n int64) {
	for v := range maps.Values(sums) {
		n += v
	}
	return n
}
