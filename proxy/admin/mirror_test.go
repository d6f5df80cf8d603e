package admin

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"go.uber.org/goleak"

	"github.com/cachalot-registry/cachalot/bounds"
	"github.com/cachalot-registry/cachalot/proxy"
	"github.com/cachalot-registry/cachalot/storage"
	"github.com/cachalot-registry/cachalot/upstream"
	"github.com/cachalot-registry/cachalot/upstream/distributiontest"
	ut "github.com/cachalot-registry/cachalot/upstream/upstreamtest"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(ut.Waiting{Tests: m}, distributiontest.IgnoreBroadcaster())
}

// mirror is a Proxy on a listener, over a store and its upstreams.
type mirror struct {
	t       testing.TB
	dir     string
	memory  *bounds.Memory
	pins    *Pins
	store   *storage.Store
	proxy   *proxy.Proxy
	metrics *proxy.Metrics
	server  *httptest.Server

	// These take effect at the next start:
	aliases, hosts map[string][]string // of registries by name
	maxSize        int64               // of the store; 0: no limit
}

// registry makes an upstream called name from a test registry.
func registry(tb testing.TB, name, url string, change ...func(*upstream.Config)) *upstream.Registry {
	tb.Helper()
	return counted(tb, name, []string{url}, upstream.NewMetrics(), change...)
}

// counted is registry, with the metrics m.
func counted(tb testing.TB, name string, urls []string, m *upstream.Metrics, change ...func(*upstream.Config)) *upstream.Registry {
	tb.Helper()
	cfg := upstream.Config{Name: name, URLs: urls, MaxConnections: 64}
	for _, c := range change {
		c(&cfg)
	}
	r, err := upstream.New(cfg, m, slog.New(slog.DiscardHandler))
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(r.Close)
	return r
}

// newMirror starts a mirror with a new folder. change may be nil.
func newMirror(tb testing.TB, change func(*proxy.Config), registries ...*upstream.Registry) *mirror {
	tb.Helper()
	m := &mirror{t: tb, dir: tb.TempDir()}
	m.start(change, registries...)
	tb.Cleanup(m.stop)
	return m
}

func (m *mirror) start(change func(*proxy.Config), registries ...*upstream.Registry) {
	m.t.Helper()
	m.memory = bounds.NewMemory(256<<20, bounds.DefaultShare)
	cfg := proxy.Config{
		Memory: m.memory, DefaultUpstream: "docker.io", FreshFor: time.Hour, MaxStale: 24 * time.Hour,
		RevalidateTimeout: time.Minute, NegativeFor: time.Hour,
	}
	if change != nil {
		change(&cfg)
	}
	log := slog.New(slog.DiscardHandler)
	m.pins = OpenPins(filepath.Join(m.dir, "pins.json"), log)
	m.pins.SetRules(cfg.Pinned())
	var err error
	m.store, err = storage.Open(storage.Config{
		Path: m.dir, MaxFills: 64, MaxSize: storage.Size{Bytes: m.maxSize}, Pinned: m.pins.Pinned(),
	}, storage.NewMetrics(), log)
	if err != nil {
		m.t.Fatal(err)
	}
	m.pins.Tell(m.store.SetPinned)
	m.metrics = proxy.NewMetrics()
	upstreams := make([]proxy.Upstream, len(registries))
	for i, r := range registries {
		upstreams[i] = proxy.Upstream{Registry: r, Aliases: m.aliases[r.Name()], Hosts: m.hosts[r.Name()]}
	}
	if m.proxy, err = proxy.New(cfg, m.store, upstreams, m.metrics, log); err != nil {
		m.t.Fatal(err)
	}
	m.server = httptest.NewServer(m.proxy)
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
func (m *mirror) restart(change func(*proxy.Config), registries ...*upstream.Registry) {
	m.t.Helper()
	m.stop()
	m.start(change, registries...)
}

// reply is a response that was read to its end.
type reply struct {
	status int
	digest string
	cache  string // Cache-Status
	body   []byte
	err    error // of the request, or of reading the body
}

// begin sends a request and does not read the response's body.
func (m *mirror) begin(ctx context.Context, method, path string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, m.server.URL+path, http.NoBody)
	if err != nil {
		return nil, err
	}
	return m.server.Client().Do(req)
}

func (m *mirror) get(path string) (a reply) {
	m.t.Helper()
	resp, err := m.begin(m.t.Context(), http.MethodGet, path)
	if err != nil {
		return reply{err: err}
	}
	defer func() { _ = resp.Body.Close() }()
	a.status, a.digest, a.cache = resp.StatusCode, resp.Header.Get("Docker-Content-Digest"), resp.Header.Get("Cache-Status")
	a.body, a.err = io.ReadAll(resp.Body)
	return a
}

// want fails the test unless the response is content, complete and with its digest.
func (m *mirror) want(a reply, c ut.Content) {
	m.t.Helper()
	if a.err != nil || a.status != http.StatusOK || !bytes.Equal(a.body, c.Bytes) || a.digest != c.Digest.String() {
		m.t.Errorf("status %d, %v: %d bytes of %s, called %q; want %d of %s", a.status, a.err, len(a.body), digest.FromBytes(a.body), a.digest, c.Size, c.Digest)
	}
}

// wantError fails the test unless the response is this OCI error.
func (m *mirror) wantError(a reply, status int, code string) {
	m.t.Helper()
	var e struct{ Errors []struct{ Code string } }
	if err := json.Unmarshal(a.body, &e); err != nil || a.status != status || len(e.Errors) != 1 || e.Errors[0].Code != code {
		m.t.Errorf("status %d, want %d %s: %.300s", a.status, status, code, a.body)
	}
}

// pullAll pulls a tag, then everything by digest.
func (m *mirror) pullAll(repo, tag string, i ut.Image) {
	m.t.Helper()
	m.want(m.get("/v2/"+repo+"/manifests/"+tag), i.Index)
	m.want(m.get("/v2/"+repo+"/manifests/"+i.Manifest.Digest.String()), i.Manifest)
	for _, b := range i.Blobs() {
		m.want(m.get("/v2/"+repo+"/blobs/"+b.Digest.String()), b)
	}
	m.settle()
}

// keep pulls manifests by their digests, as a client does.
func (m *mirror) keep(repo string, manifests ...ut.Content) {
	m.t.Helper()
	for _, one := range manifests {
		m.want(m.get("/v2/"+repo+"/manifests/"+one.Digest.String()), one)
	}
	m.settle()
}

// settle waits until no download is in progress.
func (m *mirror) settle() {
	m.t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for len(m.store.Fills()) > 0 {
		select {
		case <-tick.C:
		case <-m.t.Context().Done():
			m.t.Fatal("test ended before its downloads")
		}
	}
}

// onDisk returns the number of stored blobs, and checks each blob's digest.
func (m *mirror) onDisk() int {
	m.t.Helper()
	m.settle()
	v, err := storage.Verify(m.t.Context(), m.dir, true, func(int64, int64) {})
	if err != nil || len(v.Damaged) > 0 {
		m.t.Errorf("%+v, %v", v, err)
	}
	return v.Blobs
}
