package process

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/cachalot-registry/cachalot/test/cachalotd"
	"github.com/cachalot-registry/cachalot/upstream/upstreamtest"
)

// TestSoak runs a mirror that evicts, with a registry that fails in every way, for clients
// of every kind, for CACHALOT_SOAK (2s). No client gets a complete wrong response.
// Afterwards every image can be pulled, the metrics match the disk, and goroutines,
// descriptors and memory are as after a tenth of that time.
func TestSoak(t *testing.T) {
	t.Parallel()
	lasts, err := time.ParseDuration(cmp.Or(os.Getenv("CACHALOT_SOAK"), "2s"))
	if err != nil {
		t.Fatal("CACHALOT_SOAK: ", err)
	}
	so := newSoak(t)
	if lasts >= time.Minute { // a shorter run does not fill it
		so.fill(t)
	}
	so.run(t, lasts/10)
	before := so.rest(t, nil)
	so.run(t, lasts)
	after := so.rest(t, &before)
	t.Logf("before: %v", before)
	t.Logf("after:  %v", after)
	t.Logf("%d answers complete, %d ranges, %d left half-way, %d errors; %d faults, %d reloads; peak %d MiB",
		so.complete.Load(), so.ranges.Load(), so.left.Load(), so.errors.Load(), so.faults, so.reloads, so.server.status(t, "VmHWM")>>20)
	if after.files > before.files || after.index > before.index+8 {
		t.Errorf("descriptors: before %v, after %v", before, after)
	}
	// badger's caches and its second memtable, 34 MiB in all, fill within hours.
	if after.heap > before.heap+16<<20 || after.rss > before.rss+48<<20 {
		t.Errorf("memory: before %v, after %v", before, after)
	}
	// Not for errors: an upstream that counts as down gives an error to any number of requests.
	if so.complete.Load() < int64(so.faults) || so.ranges.Load() == 0 || so.left.Load() == 0 || so.reloads == 0 {
		t.Error("too little of it worked to say anything")
	}
	so.settle(t)
}

// soak is a mirror, its registry and the load.
type soak struct {
	folder string
	up     *upstreamtest.Registry
	server *server
	client *http.Client
	images []upstreamtest.Image
	layers []upstreamtest.Content

	complete, ranges, left, errors atomic.Int64

	faults, reloads int                      // belong to chaos
	scripted        []*upstreamtest.Scripted // belongs to chaos
}

const (
	soakLimit = 24 << 20 // of the cache, in bytes; the images have twice as many
	soakRepos = 6
)

func newSoak(t *testing.T) *soak {
	t.Helper()
	so := &soak{folder: t.TempDir(), up: upstreamtest.New(t, upstreamtest.Options{Auth: upstreamtest.Bearer, ExpiresIn: 60})}
	so.client = &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 16}}
	random := rand.New(rand.NewPCG(1, 2))
	for i := range 24 {
		img := upstreamtest.NewImage(uint64(i), 10_000+random.IntN(100_000), 1000+random.IntN(1<<20), 1<<20+random.IntN(2<<20))
		so.images, so.layers = append(so.images, img), append(so.layers, img.Layers...)
		for repo := range soakRepos {
			so.up.AddImage(soakRepo(repo), fmt.Sprint("only-", i), img)
		}
	}
	so.move(random)
	so.server = startConfig(t, so.config("info"))
	so.reload(t) // to the log level of a long run: a line per request is too much
	return so
}

// fill requests so many missing blobs that the mirror's store of 404s is full and grows no more.
func (so *soak) fill(t *testing.T) {
	t.Helper()
	const remembered = 8192 // 404s stored by the proxy
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for n := range remembered/8 + 100 {
				none := digest.FromString(fmt.Sprint(i, "/", n))
				so.pull(t, so.server.URL+"/v2/"+soakRepo(0)+"/blobs/"+none.String(), "", nil)
			}
		})
	}
	wg.Wait()
}

func soakRepo(i int) string { return fmt.Sprint("library/app-", i) }

func (so *soak) config(level string) string {
	return fmt.Sprintf(`
log: {level: %s}
storage: {path: %s, min_free: 0, max_size: %d}
tags: {fresh_for: 100ms, revalidate_timeout: 300ms, negative_for: 1s}
timeouts: {response_header: 1s, progress: 1s}
upstreams: {docker.io: {url: %s}}
`, level, so.folder, soakLimit, so.up.URL)
}

// move points the tag latest of every repository at a random image.
func (so *soak) move(random *rand.Rand) {
	for repo := range soakRepos {
		so.up.Tag(soakRepo(repo), "latest", so.images[random.IntN(len(so.images))].Index.Digest)
	}
}

func (so *soak) reload(t *testing.T) {
	t.Helper()
	if err := os.WriteFile(so.server.Config, []byte(cachalotd.Addresses+so.config("error")), 0o600); err != nil {
		t.Error(err)
	}
	if err := syscall.Kill(so.server.Cmd.Process.Pid, syscall.SIGHUP); err != nil {
		t.Error(err)
	}
	so.reloads++
}

// run applies all load for this time, and until each kind has occurred.
func (so *soak) run(t *testing.T, lasts time.Duration) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var wg sync.WaitGroup
	for i := range 12 {
		wg.Go(func() {
			random := rand.New(rand.NewPCG(uint64(i), uint64(lasts)))
			tick := time.NewTicker(5 * time.Millisecond) // clients without a pause would be a benchmark
			defer tick.Stop()
			for ctx.Err() == nil {
				so.act(t, random)
				<-tick.C
			}
		})
	}
	so.chaos(t, time.After(lasts))
	cancel()
	wg.Wait()
	for _, f := range so.scripted {
		f.Remove()
	}
	so.scripted = nil
}

// chaos adds a fault every 100 ms, for one to three requests. Sometimes it stops the
// registry, reloads and moves tags. Between two faults it waits for a complete response,
// however slow the machine is.
func (so *soak) chaos(t *testing.T, over <-chan time.Time) {
	t.Helper()
	random := rand.New(rand.NewPCG(7, 7))
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-over:
			over = nil
		case <-tick.C:
		case <-so.server.Ended(): // the mirror has ended
			return
		}
		if over == nil && so.ranges.Load() > 0 && so.left.Load() > 0 {
			so.up.Up()
			return
		}
		if so.complete.Load() <= int64(so.faults) {
			continue
		}
		m := upstreamtest.Match{Times: 1 + random.IntN(3)}
		var f upstreamtest.Fault
		m.Op, f = fault(random)
		so.scripted = append(so.scripted, so.up.Fault(m, f))
		so.faults++
		if so.faults%10 == 0 {
			so.up.Forget() // its record would grow without end
			so.move(random)
		}
		switch so.faults % 200 {
		case 5, 55, 105, 155:
			so.reload(t)
		case 90:
			so.up.Down()
		case 92:
			so.up.Up()
		}
	}
}

// fault returns a random fault of a registry.
func fault(random *rand.Rand) (upstreamtest.Op, upstreamtest.Fault) {
	at := random.IntN(1 << 19)
	faults := []struct {
		op upstreamtest.Op
		f  upstreamtest.Fault
	}{
		{upstreamtest.GetBlob, upstreamtest.CutAfter(at)},
		{upstreamtest.GetBlob, upstreamtest.CutAfter(at)},
		{upstreamtest.GetBlob, upstreamtest.StallAfter(at, nil)},
		{upstreamtest.GetBlob, upstreamtest.BlackHole()},
		{upstreamtest.GetBlob, upstreamtest.WrongBytes()},
		{upstreamtest.GetBlob, upstreamtest.IgnoreRange()},
		{upstreamtest.GetBlob, upstreamtest.NoLength()},
		{upstreamtest.GetBlob, upstreamtest.ChangedLength(-1)},
		{upstreamtest.GetBlob, upstreamtest.Gzip()},
		{upstreamtest.GetBlob, upstreamtest.RedirectLoop()},
		{upstreamtest.GetBlob, upstreamtest.Status(http.StatusServiceUnavailable)},
		{upstreamtest.HeadBlob, upstreamtest.Status(http.StatusNotFound)},
		{upstreamtest.HeadManifest, upstreamtest.BlackHole()},
		{upstreamtest.HeadManifest, upstreamtest.Status(http.StatusInternalServerError)},
		{upstreamtest.HeadManifest, upstreamtest.NoDigest()},
		{upstreamtest.GetManifest, upstreamtest.CutAfter(10)},
		{upstreamtest.GetManifest, upstreamtest.WrongBytes()},
		{upstreamtest.GetManifest, upstreamtest.Status(http.StatusTooManyRequests, "Retry-After", "1")},
		{upstreamtest.Token, upstreamtest.Status(http.StatusInternalServerError)},
	}
	one := faults[random.IntN(len(faults))]
	return one.op, one.f
}

// act is one action of one client.
func (so *soak) act(t *testing.T, random *rand.Rand) {
	t.Helper()
	base := so.server.URL + "/v2/" + soakRepo(random.IntN(soakRepos))
	layer := so.layers[random.IntN(len(so.layers))]
	blob := base + "/blobs/" + layer.Digest.String()
	switch random.IntN(10) {
	case 0, 1:
		so.pull(t, base+"/manifests/latest", "", nil)
	case 2:
		so.pull(t, base+"/manifests/"+so.images[random.IntN(len(so.images))].Manifest.Digest.String(), "", nil)
	case 3, 4:
		from := random.IntN(int(layer.Size))
		to := from + random.IntN(int(layer.Size)-from)
		so.pull(t, blob, fmt.Sprintf("bytes=%d-%d", from, to), layer.Bytes[from:to+1])
	case 5:
		so.leave(t, blob, random.Int64N(layer.Size))
	case 6:
		so.pull(t, base+"/blobs/"+digest.FromString(fmt.Sprint(random.Int())).String(), "", nil) // it does not exist
	default:
		so.pull(t, blob, "", layer.Bytes)
	}
}

// pull sends a request and checks the response against want or, if that is nil, against the
// digest in its header.
func (so *soak) pull(t *testing.T, url, span string, want []byte) (ok bool) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, http.NoBody)
	if err != nil {
		t.Error(err)
		return false
	}
	if span != "" {
		req.Header.Set("Range", span)
	}
	resp, err := so.client.Do(req)
	if err != nil {
		so.errors.Add(1)
		return false
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(resp.Body)
	if resp.StatusCode == http.StatusOK && span != "" {
		want = nil // the whole body, if the length is not known yet
	}
	switch {
	case err != nil, resp.StatusCode >= http.StatusMultipleChoices:
		if resp.StatusCode != http.StatusNotFound {
			so.errors.Add(1)
		}
		return false
	case want != nil && !bytes.Equal(b, want), want == nil && digest.FromBytes(b).String() != resp.Header.Get("Docker-Content-Digest"):
		t.Errorf("%s %s: a complete answer with wrong bytes", url, span)
	case span != "":
		so.ranges.Add(1)
	default:
		so.complete.Add(1)
	}
	return true
}

// leave reads n bytes of a response and closes the connection.
func (so *soak) leave(t *testing.T, url string, n int64) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
	if err != nil {
		t.Error(err)
		return
	}
	resp, err := so.client.Do(req)
	if err != nil {
		so.errors.Add(1)
		return
	}
	_, _ = io.CopyN(io.Discard, resp.Body, n)
	cancel()
	_ = resp.Body.Close()
	so.left.Add(1)
}

// rest closes all connections, those to the registry by a reload, and measures.
func (so *soak) rest(t *testing.T, before *usage) usage {
	t.Helper()
	so.client.CloseIdleConnections()
	so.reload(t)
	return so.server.quiet(t, before)
}

// settle checks that all works again: every image, the metrics, and the next start.
func (so *soak) settle(t *testing.T) {
	t.Helper()
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	limit := time.Now().Add(time.Minute) // wrong content is remembered for half of that
	passedThrough := so.server.Metrics(t)["cachalot_fills_passed_through_total"]
	for i, img := range so.images {
		base := so.server.URL + "/v2/" + soakRepo(0)
		for _, url := range []string{
			base + "/manifests/only-" + fmt.Sprint(i), base + "/manifests/" + img.Manifest.Digest.String(), base + "/blobs/" + img.Config.Digest.String(),
			base + "/blobs/" + img.Layers[0].Digest.String(), base + "/blobs/" + img.Layers[1].Digest.String(), base + "/blobs/" + img.Layers[2].Digest.String(),
		} {
			for !so.pull(t, url, "", nil) {
				if time.Now().After(limit) {
					t.Fatalf("%s cannot be had: %s", url, so.server.Log)
				}
				<-tick.C
			}
		}
	}
	so.rest(t, nil)
	disk, m := so.server.books(t, so.folder), so.server.Metrics(t)
	if disk.bytes+disk.partial > soakLimit || m["cachalot_evicted_bytes_total"] == 0 {
		t.Errorf("%+v on disk, %v evicted", disk, m["cachalot_evicted_bytes_total"])
	}
	t.Logf("%+v on disk; %.0f MiB fetched, %.0f MiB evicted", disk,
		m["cachalot_fetched_bytes_total"]/(1<<20), m["cachalot_evicted_bytes_total"]/(1<<20))
	if n := m["cachalot_fills_passed_through_total"] - passedThrough; n > 5 { // else stored blobs are held without a reader
		t.Errorf("%v blobs found no room, with one client", n)
	}
	checkBlobs(t, so.folder, map[string]time.Time{})
	so.server.Kill()
	s := start(t, so.folder, so.up.URL)
	s.quiet(t, nil)
	if !strings.Contains(s.Log.String(), `found_blobs=0 lost_blobs=0`) {
		t.Errorf("the index did not agree with the disk: %s", s.Log)
	}
	s.Interrupt(t)
}
