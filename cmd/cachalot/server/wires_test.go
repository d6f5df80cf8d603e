package server

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	ut "github.com/cachalot-registry/cachalot/upstream/upstreamtest"
)

// series are the values in /metrics, by name and labels as written there.
type series map[string]float64

func (r *running) series(t *testing.T) series {
	t.Helper()
	_, text := r.read(t, r.admin+"/metrics")
	all := series{}
	for _, m := range regexp.MustCompile(`(?m)^(cachalot_\w+(?:\{.*\})?) (\S+)$`).FindAllStringSubmatch(text, -1) {
		v, err := strconv.ParseFloat(m[2], 64)
		if err != nil {
			t.Fatalf("%s: %v", m[0], err)
		}
		all[m[1]] = v
	}
	return all
}

// of returns the series of one metric, by labels, without zeros.
func (s series) of(name string) map[string]float64 {
	some := map[string]float64{}
	for k, v := range s {
		if labels, ok := strings.CutPrefix(k, "cachalot_"+name+"{"); ok && v != 0 {
			some["{"+labels] = v
		}
	}
	return some
}

// wires are the two wires of a mirror, and the record of the bytes on the clients' wire.
type wires struct {
	*running
	t      *testing.T
	client *http.Client

	mu       sync.Mutex         // guards the fields below
	requests map[string]float64 // by the labels of requests_total
	served   map[string]float64 // by the labels of served_bytes_total
	maybe    map[string]float64 // further bytes that the mirror may have sent to clients that left, or in broken responses
}

// step is one request of a client.
type step struct {
	upstream, kind string
	method, path   string
	header         [2]string
	status         int
	result         string
	began          func() // called when the client has the first byte
	leave          func() // called when the client has part of the body; then it leaves
	part           int    // bytes before leave; for a broken body, its length
	broken         bool   // the body ends too early, there is no response, or the status is 502
}

// resultOf returns the cache's result from Cache-Status (RFC 9211).
func resultOf(t *testing.T, h http.Header) string {
	t.Helper()
	said := h.Get("Cache-Status")
	for _, r := range []struct{ part, result string }{
		{"detail=negative", "negative"},
		{"detail=stale-if-error", "stale"},
		{"detail=denied", "denied"},
		{"detail=error", "error"},
		{"fwd-status=304", "revalidated"},
		{"collapsed", "collapsed"},
		{"fwd=miss", "miss"},
		{"cachalot; hit", "hit"},
	} {
		if strings.Contains(said, r.part) {
			return r.result
		}
	}
	t.Errorf("Cache-Status %q", said)
	return ""
}

// do sends a request and records the result.
func (w *wires) do(s step) {
	w.t.Helper()
	ctx, cancel := context.WithCancel(w.t.Context())
	defer cancel()
	if s.method == "" {
		s.method = http.MethodGet
	}
	if s.status == 0 {
		s.status = http.StatusOK
	}
	req, err := http.NewRequestWithContext(ctx, s.method, w.url+s.path, http.NoBody)
	if err != nil {
		w.t.Fatal(err)
	}
	if s.header[0] != "" {
		req.Header.Set(s.header[0], s.header[1])
	}
	if s.broken { // on a reused connection, Go's client retries by itself if there is no response
		w.client.CloseIdleConnections()
	}
	resp, err := w.client.Do(req)
	if err != nil && s.broken { // the bytes are lost with the connection
		w.count(s, "error", 0, int64(s.part))
		return
	}
	if err != nil {
		w.t.Errorf("%s %s: %v", s.method, s.path, err)
		return
	}
	defer resp.Body.Close()
	result := resultOf(w.t, resp.Header)
	var n, more int64
	if s.leave != nil {
		n, err = io.CopyN(io.Discard, resp.Body, int64(s.part))
		more = resp.ContentLength - n
		s.leave()
	} else {
		if s.began != nil {
			n, err = io.CopyN(io.Discard, resp.Body, 1)
			s.began()
		}
		if err == nil {
			var rest int64
			rest, err = io.Copy(io.Discard, resp.Body)
			n += rest
		}
	}
	if s.broken && resp.StatusCode == http.StatusBadGateway { // the fault was found before the header was sent
		s.broken, s.status = false, http.StatusBadGateway
	}
	if s.broken != (err != nil) {
		w.t.Errorf("%s %s: the body ended with %v", s.method, s.path, err)
	}
	if s.broken {
		result = "error" // the fault was found after the header was sent
	}
	if resp.StatusCode != s.status || result != s.result {
		w.t.Errorf("%s %s: %d %s, want %d %s", s.method, s.path, resp.StatusCode, result, s.status, s.result)
	}
	w.count(s, result, n, more)
}

// count records a request: the result, the bytes that the client received, and how many
// more the mirror may have sent.
func (w *wires) count(s step, result string, n, more int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.requests[fmt.Sprintf(`{kind=%q,result=%q,upstream=%q}`, s.kind, result, s.upstream)]++
	bytes := fmt.Sprintf(`{kind=%q,upstream=%q}`, s.kind, s.upstream)
	w.served[bytes] += float64(n)
	w.maybe[bytes] += float64(more)
}

// ended waits until no request is in progress, and returns the metrics.
func (w *wires) ended() series {
	w.t.Helper()
	limit := time.After(patience)
	for tick := time.NewTicker(5 * time.Millisecond); ; {
		s := w.series(w.t)
		if s["cachalot_requests_in_flight"] == 0 && s["cachalot_fills_in_progress"] == 0 {
			return s
		}
		select {
		case <-tick.C:
		case <-limit:
			w.t.Fatalf("requests are still in flight: %v", s)
		}
	}
}

// asked returns the values that the metrics must have for the wire to an upstream.
func asked(name string, up *ut.Registry) (requests, fetched map[string]float64) {
	requests, fetched = map[string]float64{}, map[string]float64{}
	kinds := map[ut.Op]string{ut.GetManifest: "manifest", ut.GetBlob: "blob", ut.CDN: "blob", ut.Tags: "tags", ut.Referrers: "referrers"}
	for _, q := range up.Requests() {
		op := q.Op
		if op == ut.CDN {
			op = ut.GetBlob
			if q.Method == http.MethodHead {
				op = ut.HeadBlob
			}
		}
		requests[fmt.Sprintf(`{code="%d",op=%q,upstream=%q}`, q.Status, op, name)]++
		if kind := kinds[q.Op]; kind != "" && q.Status/100 == 2 && q.Sent > 0 {
			fetched[fmt.Sprintf(`{kind=%q,upstream=%q}`, kind, name)] += float64(q.Sent)
		}
	}
	return requests, fetched
}

// TestMetrics_CountTheWire: every counter matches the bytes on the wires. The steps produce
// each result by GET, HEAD and ranges, over plain HTTP and TLS. Downloads break, are wrong,
// and use several connections; a client leaves; blobs are evicted.
func TestMetrics_CountTheWire(t *testing.T) {
	t.Parallel()
	for _, scheme := range []string{"http", "https"} {
		t.Run(scheme, func(t *testing.T) { // not parallel: each one takes much memory
			testWires(t, scheme)
		})
	}
}

const wiresLimit = 80 << 20 // max_size

func startWires(t *testing.T, scheme string, hub, other *ut.Registry) *wires {
	t.Helper()
	cfg := fmt.Sprintf("storage: {path: CACHE, min_free: 0, max_size: %d}\n", wiresLimit) +
		"tags: {fresh_for: 1ns, negative_for: 1h}\n" + // checks a tag at each request
		"upstreams: {docker.io: {url: " + hub.URL + ", username: me, password: right, token_realms: [\"" + hub.TokenHost() + "\"]}, ghcr.io: {url: " + other.URL + "}}\n"
	transport := &http.Transport{DisableCompression: true}
	if scheme != "http" {
		pair := pairFiles(t)
		transport.TLSClientConfig = &tls.Config{RootCAs: writePair(t, pair, 1)}
		transport.ForceAttemptHTTP2 = true // the mirror speaks HTTP/1.1 anyway
		cfg += "tls: {certificate: " + pair.Certificate + ", key: " + pair.Key + "}\n"
	}
	t.Cleanup(transport.CloseIdleConnections)
	return &wires{
		running: start(t, cfg), t: t, client: &http.Client{Transport: transport},
		requests: map[string]float64{}, served: map[string]float64{}, maybe: map[string]float64{},
	}
}

func testWires(t *testing.T, scheme string) {
	t.Helper()
	hub := ut.New(t, ut.Options{Auth: ut.Bearer, Username: "me", Password: "right", TokenElsewhere: true, CDN: true})
	other := ut.New(t, ut.Options{})
	w := startWires(t, scheme, hub, other)
	img := hub.AddImage("library/app", "latest", ut.NewImage(1, 40<<20, 3<<20, 1<<20, 200_000, 100_000))
	hub.AddBlob("library/second", img.Layers[2])
	hub.AddManifest("library/app", ut.Subject(img.Index.Descriptor, "text/plain"))
	small := other.AddImage("acme/tool", "1", ut.NewImage(2, 50_000))

	const app = "/v2/library/app/"
	manifest := func(reference, result string) step {
		return step{upstream: "docker.io", kind: "manifest", path: app + "manifests/" + reference, result: result}
	}
	blob := func(c ut.Content, result string) step {
		return step{upstream: "docker.io", kind: "blob", path: app + "blobs/" + c.Digest.String(), result: result}
	}
	with := func(s step, key, value string, status int) step {
		s.header, s.status = [2]string{key, value}, status
		return s
	}
	head := func(s step) step { s.method = http.MethodHead; return s }
	elsewhere := func(s step, upstream, path string) step { s.upstream, s.path = upstream, path; return s }
	missing := func(s step) step { s.status = http.StatusNotFound; return s }
	list := func(kind, path, result string) step {
		return step{upstream: "docker.io", kind: kind, path: app + path, result: result}
	}

	// An image is pulled twice, with other requests in between.
	w.do(head(manifest("latest", "miss")))
	w.do(manifest("latest", "miss")) // the HEAD stored nothing
	w.do(manifest("latest", "revalidated"))
	w.do(manifest(img.Manifest.Digest.String(), "miss"))
	w.do(head(manifest(img.Manifest.Digest.String(), "hit")))
	w.do(with(manifest(img.Manifest.Digest.String(), "hit"), "If-None-Match", `"`+img.Manifest.Digest.String()+`"`, http.StatusNotModified))
	w.do(head(blob(img.Config, "miss")))
	w.do(blob(img.Config, "miss"))
	w.do(head(blob(img.Config, "hit")))
	w.do(list("tags", "tags/list", "miss"))
	w.do(list("tags", "tags/list?n=1", "revalidated"))
	w.do(with(list("tags", "tags/list?n=-1", "error"), "", "", http.StatusBadRequest))
	w.do(list("referrers", "referrers/"+img.Index.Digest.String(), "miss"))
	w.do(head(list("referrers", "referrers/"+img.Index.Digest.String(), "revalidated")))

	// A long layer over several slow connections.
	slow := hub.Fault(ut.Match{Op: ut.CDN, Reference: img.Layers[0].Digest.String()}, ut.Throttle(48<<20))
	w.do(blob(img.Layers[0], "miss"))
	slow.Remove()
	if n := len(hub.Select(ut.Match{Op: ut.CDN, Reference: img.Layers[0].Digest.String()})); n < 2 {
		t.Errorf("the long layer came in %d parts", n)
	}
	w.do(with(blob(img.Layers[0], "hit"), "Range", "bytes=1000000-3000000", http.StatusPartialContent))
	w.do(with(blob(img.Layers[0], "hit"), "Range", "bytes=-7", http.StatusPartialContent))

	// A download breaks and is resumed for two clients. One joined it; one requests a range.
	release := make(chan struct{})
	half := len(img.Layers[1].Bytes) / 2
	broken := hub.Fault(ut.Match{Op: ut.CDN, Reference: img.Layers[1].Digest.String(), Times: 1}, ut.StallAfter(half, release), ut.CutAfter(half+1000))
	var both sync.WaitGroup
	joined := make(chan struct{})
	both.Go(func() {
		s := blob(img.Layers[1], "miss")
		s.part, s.leave = half/2, func() { close(joined) } // it leaves, and the download continues
		w.do(s)
	})
	<-joined
	ranged := make(chan struct{})
	both.Go(func() {
		s := with(blob(img.Layers[1], "collapsed"), "Range", "bytes=10-", http.StatusPartialContent)
		s.began = func() { close(ranged) }
		w.do(s)
	})
	<-ranged
	// Another client joins, and then the download continues.
	s := blob(img.Layers[1], "collapsed")
	s.part, s.leave = 1, func() { close(release) }
	w.do(s)
	both.Wait()
	if broken.Applied() != 1 {
		t.Error("no download broke")
	}
	w.do(with(blob(img.Layers[2], "miss"), "Range", "bytes=500-999", http.StatusPartialContent))
	w.do(blob(img.Layers[2], "hit"))
	w.do(elsewhere(blob(img.Layers[2], "hit"), "docker.io", "/v2/library/second/blobs/"+img.Layers[2].Digest.String())) // a HEAD confirms it

	// Content that fails.
	wrong := hub.Fault(ut.Match{Op: ut.CDN, Reference: img.Layers[3].Digest.String()}, ut.WrongBytes())
	s = blob(img.Layers[3], "error")
	s.broken, s.part = true, len(img.Layers[3].Bytes)
	w.do(s)
	s.broken, s.status = false, http.StatusBadGateway // the failure is stored
	w.do(s)
	wrong.Remove()
	w.do(missing(manifest("nosuch", "miss")))
	w.do(missing(manifest("nosuch", "negative")))
	w.do(missing(blob(ut.NewContent("", []byte("nosuch")), "miss")))
	w.do(missing(blob(ut.NewContent("", []byte("nosuch")), "negative")))
	hub.Fault(ut.Match{Repo: "acme/secret"}, ut.Status(http.StatusForbidden))
	w.do(missing(elsewhere(manifest("", "denied"), "docker.io", "/v2/acme/secret/manifests/1")))
	w.do(missing(elsewhere(manifest("", "error"), "unknown", "/v2/nosuch.example/acme/tool/manifests/1")))
	w.do(with(elsewhere(manifest("", "error"), "unknown", "/v2/library/app/manifests/sha256:12"), "", "", http.StatusBadRequest))

	// The other registry goes down.
	tool := elsewhere(manifest("", "miss"), "ghcr.io", "/v2/acme/tool/manifests/1?ns=ghcr.io")
	w.do(tool)
	other.Fault(ut.Match{Op: ut.HeadManifest, Times: 1}, ut.Status(http.StatusTooManyRequests))
	tool.result = "revalidated" // by a GET
	w.do(tool)
	other.Down()
	tool.result = "stale"
	w.do(tool)
	w.do(with(elsewhere(blob(small.Layers[0], "error"), "ghcr.io", "/v2/acme/tool/blobs/"+small.Layers[0].Digest.String()+"?ns=ghcr.io"), "", "", http.StatusBadGateway))

	// More content than the limit allows.
	folder := filepath.Join(filepath.Dir(w.file), "cache", "blobs")
	before := files(t, folder)
	w.ended() // all blobs are on disk now
	maps.Copy(before, files(t, folder))
	for i := range 8 {
		c := ut.NewContent("", ut.Random(uint64(100+i), 8<<20))
		hub.AddBlob("library/app", c)
		w.do(blob(c, "miss"))
		before[c.Digest.Encoded()] = c.Size
	}

	w.check(hub, other, before, folder)
}

// check compares the metrics with the record. before are all files that existed at any time.
func (w *wires) check(hub, other *ut.Registry, before map[string]int64, folder string) {
	t := w.t
	t.Helper()
	got, kept := w.ended(), files(t, folder)
	for stop := time.Now().Add(patience); time.Now().Before(stop); got, kept = w.ended(), files(t, folder) { // eviction continues to its low mark
		gone, times := got.of("evicted_bytes_total")[`{reason="space"}`], got.of("eviction_age_seconds_count")[`{reason="space"}`]
		// A scrape is not a snapshot: each value has its own time.
		if got["cachalot_storage_bytes"] == float64(blocks(kept)) && got["cachalot_storage_blobs"] == float64(len(kept)) &&
			gone == float64(blocks(before)-blocks(kept)) && times == float64(len(before)-len(kept)) {
			break
		}
	}
	evicted := before
	for name := range kept {
		delete(evicted, name)
	}
	if len(evicted) == 0 {
		t.Error("nothing was evicted")
	}

	for name, want := range map[string]map[string]float64{
		"requests_total":             w.requests,
		"evicted_bytes_total":        {`{reason="space"}`: float64(blocks(evicted))},
		"eviction_age_seconds_count": {`{reason="space"}`: float64(len(evicted))},
		"fill_failures_total":        {`{reason="digest"}`: 1, `{reason="upstream"}`: 1}, // wrong content, and a registry that was down
	} {
		if got := got.of(name); !maps.Equal(got, want) {
			t.Errorf("%s:\n got %v\nwant %v", name, got, want)
		}
	}
	if t.Failed() { // the log has a line per request
		log, _ := w.log.now()
		t.Log(log)
	}
	results := map[string]bool{}
	for labels := range w.requests {
		results[regexp.MustCompile(`result="(\w+)"`).FindStringSubmatch(labels)[1]] = true
	}
	if want := []string{"collapsed", "denied", "error", "hit", "miss", "negative", "revalidated", "stale"}; !slices.Equal(slices.Sorted(maps.Keys(results)), want) {
		t.Errorf("the results were %v, want each of %v", results, want)
	}
	for name, want := range map[string]float64{
		"fill_resumes_total": 1, "fills_passed_through_total": 0, "fills_waiting": 0, "storage_limit_bytes": wiresLimit,
		"storage_bytes": float64(blocks(kept)), "storage_blobs": float64(len(kept)), "quarantined_blobs_total": 0,
	} {
		if v, ok := got["cachalot_"+name]; v != want || !ok {
			t.Errorf("%s is %v, want %v", name, v, want)
		}
	}

	served := got.of("served_bytes_total")
	for labels, want := range w.served {
		if v := served[labels]; v < want || v > want+w.maybe[labels] {
			t.Errorf("served_bytes_total%s is %v, clients received %v (and up to %v more)", labels, v, want, w.maybe[labels])
		}
		delete(served, labels)
	}
	if len(served) > 0 {
		t.Errorf("served_bytes_total has %v, which nobody received", served)
	}

	requests, fetched := asked("docker.io", hub)
	moreRequests, moreFetched := asked("ghcr.io", other)
	maps.Copy(requests, moreRequests)
	maps.Copy(fetched, moreFetched)
	if got := got.of("fetched_bytes_total"); !maps.Equal(got, fetched) {
		t.Errorf("fetched_bytes_total:\n got %v\nsent %v", got, fetched)
	}
	sent := got.of("upstream_requests_total")
	unanswered := 0.0
	maps.DeleteFunc(sent, func(labels string, n float64) bool {
		none := strings.Contains(labels, `code="error"`) && strings.Contains(labels, `upstream="ghcr.io"`)
		if none {
			unanswered += n
		}
		return none
	})
	if !maps.Equal(sent, requests) || unanswered == 0 {
		t.Errorf("upstream_requests_total, and %v without an answer:\n got %v\nseen %v", unanswered, sent, requests)
	}
	observed, sum := 0.0, 0.0
	for name, n := range map[string]*float64{"upstream_request_seconds_count": &observed, "upstream_requests_total": &sum} {
		for _, v := range got.of(name) {
			*n += v
		}
	}
	if observed != sum {
		t.Errorf("%v requests were timed, %v counted", observed, sum)
	}
}

// files are the stored blobs: sizes by name.
func files(t *testing.T, folder string) map[string]int64 {
	t.Helper()
	all := map[string]int64{}
	err := filepath.WalkDir(folder, func(_ string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		info, err := e.Info()
		if err == nil {
			all[e.Name()] = info.Size()
		}
		return err
	})
	if err != nil && !errors.Is(err, os.ErrNotExist) { // it may be evicted now
		t.Fatal(err)
	}
	return all
}

// blocks is the disk space of files.
func blocks(files map[string]int64) (bytes int64) {
	for _, size := range files {
		bytes += (size + 4095) &^ 4095
	}
	return bytes
}
