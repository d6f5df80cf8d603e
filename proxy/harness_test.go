package proxy

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"go.uber.org/goleak"

	"github.com/cachalot-registry/cachalot/bounds"
	"github.com/cachalot-registry/cachalot/storage"
	"github.com/cachalot-registry/cachalot/upstream"
	"github.com/cachalot-registry/cachalot/upstream/distributiontest"
	"github.com/cachalot-registry/cachalot/upstream/upstreamtest"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(upstreamtest.Waiting{Tests: m}, distributiontest.IgnoreBroadcaster())
}

// mirror is a Proxy on a listener, over a store and its upstreams.
type mirror struct {
	t       testing.TB
	dir     string
	store   *storage.Store
	proxy   *Proxy
	metrics *Metrics
	server  *httptest.Server
	client  *http.Client
	inside  atomic.Int64 // requests being served

	// These take effect at the next start:
	aliases, hosts map[string][]string // of registries by name
	maxSize        int64               // of the store; 0: no limit
	maxIndex       int64               // limit of the tags' records in the index; 0: no limit
	log            slog.Handler        // of the proxy; nil: nowhere
}

func testConfig() Config {
	return Config{
		Memory:          bounds.NewMemory(256<<20, bounds.DefaultShare),
		DefaultUpstream: "docker.io", FreshFor: time.Hour, MaxStale: 24 * time.Hour,
		RevalidateTimeout: time.Minute, NegativeFor: time.Hour,
	}
}

// registry makes an upstream called name from a test registry.
func registry(tb testing.TB, name, url string, change ...func(*upstream.Config)) *upstream.Registry {
	tb.Helper()
	cfg := upstream.Config{
		Name: name, URLs: []string{url}, MaxConnections: 64,
		Timeouts: upstream.Timeouts{Dial: 5 * time.Second, TLSHandshake: 5 * time.Second, ResponseHeader: 20 * time.Second, Progress: 20 * time.Second},
	}
	for _, c := range change {
		c(&cfg)
	}
	r, err := upstream.New(cfg, upstream.NewMetrics(), slog.New(slog.DiscardHandler))
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(r.Close)
	return r
}

// newMirror starts a mirror with a new folder. change may be nil.
func newMirror(tb testing.TB, change func(*Config), registries ...*upstream.Registry) *mirror {
	tb.Helper()
	m := &mirror{t: tb, dir: tb.TempDir()}
	m.start(change, registries...)
	tb.Cleanup(func() { m.stop() })
	return m
}

func (m *mirror) start(change func(*Config), registries ...*upstream.Registry) {
	m.t.Helper()
	cfg := testConfig()
	if change != nil {
		change(&cfg)
	}
	var err error
	m.store, err = storage.Open(storage.Config{
		Path: m.dir, MaxFills: 64, MaxSize: storage.Size{Bytes: m.maxSize}, MaxIndex: m.maxIndex, Pinned: cfg.Pinned(),
	}, storage.NewMetrics(), slog.New(slog.DiscardHandler))
	if err != nil {
		m.t.Fatal(err)
	}
	m.metrics = NewMetrics()
	upstreams := make([]Upstream, len(registries))
	for i, r := range registries {
		upstreams[i] = Upstream{Registry: r, Aliases: m.aliases[r.Name()], Hosts: m.hosts[r.Name()]}
	}
	if m.log == nil {
		m.log = slog.DiscardHandler
	}
	m.proxy, err = New(cfg, m.store, upstreams, m.metrics, slog.New(m.log))
	if err != nil {
		m.t.Fatal(err)
	}
	m.server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		m.inside.Add(1)
		defer m.inside.Add(-1)
		m.proxy.ServeHTTP(w, r)
	}))
	m.client = m.server.Client()
}

func (m *mirror) stop() {
	if m.server == nil {
		return
	}
	m.server.Close()
	m.server = nil
	m.proxy.Close()
	if err := m.store.Close(); err != nil {
		m.t.Error(err)
	}
}

// restart opens the same folder again.
func (m *mirror) restart(change func(*Config), registries ...*upstream.Registry) {
	m.t.Helper()
	m.stop()
	m.start(change, registries...)
}

// reply is a response that was read to its end.
type reply struct {
	status int
	header http.Header
	body   []byte
	err    error // of reading the body
}

func (a reply) cache() string { return a.header.Get("Cache-Status") }

// code is the OCI error code of the response.
func (a reply) code() string {
	var e struct {
		Errors []struct {
			Code    string `json:"code"`
			Message string `json:"message"`
		} `json:"errors"`
	}
	if json.Unmarshal(a.body, &e) != nil || len(e.Errors) == 0 {
		return ""
	}
	return e.Errors[0].Code
}

// begin sends a request and does not read the response's body.
func (m *mirror) begin(ctx context.Context, method, path string, header ...string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, m.server.URL+path, http.NoBody)
	if err != nil {
		return nil, err
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	return m.client.Do(req)
}

func (m *mirror) do(method, path string, header ...string) reply {
	m.t.Helper()
	resp, err := m.begin(m.t.Context(), method, path, header...)
	if err != nil {
		return reply{err: err}
	}
	defer func() { _ = resp.Body.Close() }()
	a := reply{status: resp.StatusCode, header: resp.Header}
	a.body, a.err = io.ReadAll(resp.Body)
	return a
}

func (m *mirror) get(path string, header ...string) reply {
	m.t.Helper()
	return m.do(http.MethodGet, path, header...)
}

func (m *mirror) head(path string) reply {
	m.t.Helper()
	return m.do(http.MethodHead, path)
}

// want fails the test unless the response is content, complete and with its digest.
func (m *mirror) want(a reply, c upstreamtest.Content) {
	m.t.Helper()
	switch {
	case a.err != nil || a.status != http.StatusOK:
		m.t.Errorf("status %d, %v: %.300s", a.status, a.err, a.body)
	case !bytes.Equal(a.body, c.Bytes):
		m.t.Errorf("%d bytes of %s, want %d of %s", len(a.body), digest.FromBytes(a.body), c.Size, c.Digest)
	case a.header.Get("Docker-Content-Digest") != c.Digest.String():
		m.t.Errorf("Docker-Content-Digest %q", a.header.Get("Docker-Content-Digest"))
	case a.header.Get("Docker-Distribution-Api-Version") != "registry/2.0":
		m.t.Error("no API version")
	}
}

// wantError fails the test unless the response is this OCI error.
func (m *mirror) wantError(a reply, status int, code string) {
	m.t.Helper()
	if a.err != nil || a.status != status || a.code() != code {
		m.t.Errorf("status %d %s (%v), want %d %s: %.300s", a.status, a.code(), a.err, status, code, a.body)
	}
	if a.header.Get("WWW-Authenticate") != "" {
		m.t.Error("challenges the client")
	}
	if a.cache() == "" || a.header.Get("Docker-Distribution-Api-Version") == "" {
		m.t.Errorf("headers missing: %v", a.header)
	}
}

// pull does what dockerd does for an image: HEAD by tag, then everything by
// digest.
func (m *mirror) pull(repo, tag string, img upstreamtest.Image) {
	m.t.Helper()
	a := m.head("/v2/" + repo + "/manifests/" + tag)
	if a.status != http.StatusOK || a.header.Get("Docker-Content-Digest") != img.Index.Digest.String() ||
		a.header.Get("Content-Length") != fmt.Sprint(img.Index.Size) || a.header.Get("Content-Type") != img.Index.MediaType {
		m.t.Errorf("HEAD %s:%s: %d %v %v", repo, tag, a.status, a.header, a.err)
	}
	for _, c := range []upstreamtest.Content{img.Index, img.Manifest} {
		a := m.get("/v2/" + repo + "/manifests/" + c.Digest.String())
		m.want(a, c)
		if got := a.header.Get("Content-Type"); got != c.MediaType {
			m.t.Errorf("media type %q, want %q", got, c.MediaType)
		}
	}
	for _, c := range img.Blobs() {
		m.want(m.get("/v2/"+repo+"/blobs/"+c.Digest.String()), c)
	}
}

func withPassword(username, password string) func(*upstream.Config) {
	return func(c *upstream.Config) { c.Accounts = []upstream.Account{{Username: username, Password: password}} }
}

// waitFor waits until a background task makes ok true.
func waitFor(tb testing.TB, ok func() bool) {
	tb.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-tb.Context().Done():
			tb.Fatal("test ended before what it waits for")
		}
	}
}

func (p *Proxy) isProbing(name string) bool {
	p.suspicion.mu.Lock()
	defer p.suspicion.mu.Unlock()
	return len(p.suspicion.checking[name]) > 0
}

// removeBlobs empties blobs/ while the mirror does not notice.
func removeBlobs(t *testing.T, m *mirror) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(m.dir, "blobs", "*", "*", "*"))
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	for _, f := range files {
		if err := os.Remove(f); err != nil {
			t.Fatal(err)
		}
	}
}

// settle waits until no download is in progress.
func (m *mirror) settle() {
	m.t.Helper()
	waitFor(m.t, func() bool { return len(m.store.Fills()) == 0 })
}

// keep pulls manifests by their digests, as a client does.
func (m *mirror) keep(repo string, manifests ...upstreamtest.Content) {
	m.t.Helper()
	for _, one := range manifests {
		if a := m.get("/v2/" + repo + "/manifests/" + one.Digest.String()); a.status != http.StatusOK {
			m.t.Fatalf("%d %s", a.status, a.body)
		}
	}
	m.settle()
}
