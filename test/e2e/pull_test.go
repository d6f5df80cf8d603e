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
	forEver = time.Hour   // a fresh_for that no test outlives
	shortly = time.Second // and one that it waits for
)

// tries is how often a registry that is gone may be asked for what is to be
// checked: how to authenticate, once by HEAD, and three times by GET.
const tries = 5

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

func hub(t *testing.T) *distributiontest.Registry {
	t.Helper()
	return distributiontest.New(t, distributiontest.Options{Auth: upstreamtest.Bearer})
}

func asHub(url string) map[string]string { return map[string]string{"docker.io": "{url: " + url + "}"} }

// TestPull: each client pulls from two registries through one mirror, from the
// first time on until both are gone. What it gets is what was pushed, and what
// that costs the registries is counted.
//
// Each is configured by exactly what "cachalot client" prints, but docker29-flag,
// and those that know no mirrors. They, and dockerd for what is not Docker Hub's,
// name the mirror in the image's name.
func TestPull(t *testing.T) {
	t.Parallel()
	for name, with := range map[string]struct {
		types  mediaTypes
		client func(*testing.T, *mirror) client
		also   func(release) wire // what the client pulls besides its platform's image
		ranges bool               // whether it fetches a layer in ranges
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
			s.mirror = &mirror{upstreams: upstreams(s.sources), negativeFor: forEver} // of referrers too, which there are none of
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

// attested is what the attestation costs, and asking for referrers: of the
// registry, which has no such API, and then for the tag that stands in for it.
func attested(r release) wire {
	return wire{
		Manifests: 1, Blobs: len(r.attestation.Blobs()), Bytes: r.attestation.Size(),
		Referrers: 2,
	}
}

// everyConfig is what the other images of the index cost without their layers:
// ctr asks all of them for their platform.
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

	// A reload forgets the tokens, and what it knew of the upstreams.
	s.mirror.reload(t, shortly)
	time.Sleep(shortly) // until the tags are to be checked
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

// pull pulls all images anew, and compares what that cost, what the mirror says
// of it and what came of it. The first of results is that of a tag, the others
// are those that further requests may have.
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

// inRanges wants the big layer to have been asked for in several ranges, each
// of the times that it was pulled.
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

// runs runs a container of the image and reads its layers there.
func runs(t *testing.T, r runner, image string, want release) {
	t.Helper()
	const script = "/bin/busybox cat /version; /bin/busybox sha256sum /payload"
	out := r.run(t, image, "/bin/busybox", "sh", "-c", script)
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
