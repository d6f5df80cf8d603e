package server

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/cachalot-registry/cachalot/upstream/upstreamtest"
)

func upstreams(url string) string {
	return "upstreams:\n  docker.io:\n    url: " + url + "\n"
}

// pull is a pull in progress.
type pull struct {
	*running
	body    io.Reader // without its first byte
	rest    int       // the number of bytes left
	release chan struct{}
}

// stalled starts a mirror and a pull that has its first bytes. The rest follows when
// release is closed.
func stalled(t *testing.T, cfg string) pull {
	t.Helper()
	up := upstreamtest.New(t, upstreamtest.Options{})
	layer := up.AddImage("library/app", "latest", upstreamtest.NewImage(1, 1<<20)).Layers[0]
	p := pull{release: make(chan struct{}), rest: len(layer.Bytes) - 1}
	up.Fault(upstreamtest.Match{Op: upstreamtest.GetBlob}, upstreamtest.StallAfter(100_000, p.release))
	p.running = start(t, cfg+upstreams(up.URL))
	status, body := p.get(t, p.url+"/v2/library/app/blobs/"+layer.Digest.String())
	if status != http.StatusOK {
		t.Fatal(status)
	}
	if _, err := io.ReadFull(body, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	p.body = body
	return p
}

// finish lets the upstream continue, and checks that the client gets the complete body.
func (p pull) finish(t *testing.T) {
	t.Helper()
	close(p.release)
	rest, err := io.ReadAll(p.body)
	if err != nil || len(rest) != p.rest {
		t.Errorf("of a running response came %d bytes, want %d; %v", len(rest), p.rest, err)
	}
}

func TestServe(t *testing.T) {
	t.Parallel()
	up := upstreamtest.New(t, upstreamtest.Options{Auth: upstreamtest.Bearer})
	img := up.AddImage("library/app", "latest", upstreamtest.NewImage(1, 100_000))
	r := start(t, upstreams(up.URL))

	for _, path := range []string{"/healthz", "/readyz", "/debug/pprof/cmdline"} {
		if status, body := r.read(t, r.admin+path); status != http.StatusOK {
			t.Errorf("%s: %d %s", path, status, body)
		}
	}
	for range 2 {
		status, body := r.read(t, r.url+"/v2/library/app/manifests/latest")
		if got := digest.FromString(body); status != http.StatusOK || got != img.Index.Digest {
			t.Errorf("manifest: %d, %s", status, got)
		}
		status, body = r.read(t, r.url+"/v2/library/app/blobs/"+img.Layers[0].Digest.String())
		if got := digest.FromString(body); status != http.StatusOK || got != img.Layers[0].Digest {
			t.Errorf("layer: %d, %s", status, got)
		}
	}
	if n := up.Count(upstreamtest.GetBlob); n != 1 {
		t.Errorf("%d blob downloads, want 1", n)
	}
	r.read(t, r.url+"/v2/") // on the same connection, so the previous requests are counted
	_, text := r.read(t, r.admin+"/metrics")
	for _, want := range []string{
		"cachalot_build_info{", "\ncachalot_connections ", "\ncachalot_config_last_reload_successful 1\n",
		"\ngo_goroutines ", "\nprocess_open_fds ", "\ncachalot_storage_bytes ",
		`cachalot_requests_total{kind="manifest",result="hit",upstream="docker.io"} 1`,
		`cachalot_served_bytes_total{kind="blob",upstream="docker.io"} 200000`,
		`cachalot_fetched_bytes_total{kind="blob",upstream="docker.io"} 100000`,
	} {
		if !strings.Contains(text, want) {
			t.Errorf("/metrics has no %q", want)
		}
	}
}

func TestShutdownLetsResponsesEnd(t *testing.T) {
	t.Parallel()
	r := stalled(t, "")
	r.signals <- syscall.SIGTERM
	r.log.wait(t, `msg="stopping; running responses may end" signal=terminated`)
	if status, body := r.read(t, r.admin+"/readyz"); status != http.StatusServiceUnavailable {
		t.Errorf("/readyz while stopping: %d %s", status, body)
	}
	if status, _ := r.read(t, r.admin+"/healthz"); status != http.StatusOK {
		t.Errorf("/healthz while stopping: %d", status)
	}
	r.refuses(t)
	r.signals <- syscall.SIGHUP // has no effect now

	r.finish(t)
	if err := r.end(t); err != nil {
		t.Error(err)
	}
	r.log.wait(t, "msg=stopped")
}

// TestDrainDelay: while a mirror is about to stop it is not ready, and serves new connections,
// which end with their response. Without the delay, the listener closes at once.
func TestDrainDelay(t *testing.T) {
	t.Parallel()
	r := stalled(t, "drain_delay: 1h\n")
	r.signals <- syscall.SIGTERM
	r.log.wait(t, `msg="stopping; running responses may end" signal=terminated drain_delay=1h0m0s`)
	if status, body := r.read(t, r.admin+"/readyz"); status != http.StatusServiceUnavailable {
		t.Errorf("/readyz while draining: %d %s", status, body)
	}
	client := &http.Client{Transport: &http.Transport{}} // with connections of its own
	defer client.CloseIdleConnections()
	for range 3 {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, r.url+"/v2/", http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		if _ = resp.Body.Close(); resp.StatusCode != http.StatusOK || !resp.Close {
			t.Errorf("%d, the connection is closed: %v", resp.StatusCode, resp.Close)
		}
	}
	r.signals <- syscall.SIGTERM
	if err := r.end(t); !errors.Is(err, errStoppedAtOnce) {
		t.Errorf("got %v, want errStoppedAtOnce", err)
	}
	close(r.release) // a separate process would have ended by now
	r.log.wait(t, "msg=stopped")
}

func TestShutdownTimeout(t *testing.T) {
	t.Parallel()
	r := stalled(t, "shutdown_timeout: 1ms\n")
	r.signals <- os.Interrupt
	if err := r.end(t); err != nil {
		t.Error(err)
	}
	r.log.wait(t, "responses still running after shutdown_timeout are cut off")
	if _, err := io.ReadAll(r.body); err == nil {
		t.Error("the response ended as if it were whole")
	}
}

func TestSecondSignalStopsAtOnce(t *testing.T) {
	t.Parallel()
	r := stalled(t, "")
	r.signals <- syscall.SIGTERM
	r.signals <- syscall.SIGTERM
	if err := r.end(t); !errors.Is(err, errStoppedAtOnce) {
		t.Errorf("got %v, want errStoppedAtOnce", err)
	}
	close(r.release) // a separate process would have ended by now
	r.log.wait(t, "msg=stopped")
}

func TestReload(t *testing.T) {
	t.Parallel()
	before := upstreamtest.New(t, upstreamtest.Options{})
	before.AddImage("library/app", "latest", upstreamtest.NewImage(1, 1000))
	after := upstreamtest.New(t, upstreamtest.Options{})
	img := after.AddImage("library/new", "latest", upstreamtest.NewImage(2, 1000))
	r := start(t, upstreams(before.URL))
	if status, body := r.read(t, r.url+"/v2/library/app/manifests/latest"); status != http.StatusOK {
		t.Fatalf("%d %s", status, body)
	}

	r.configure(t, "log: {level: debug, format: json}\nmax_connections: 7\n"+upstreams(after.URL))
	r.signals <- syscall.SIGHUP
	r.log.wait(t, `msg="changed keys need a restart" keys="max_connections, log\.format"`)
	r.log.wait(t, `msg="configuration reloaded"`)

	before.Forget()
	status, body := r.read(t, r.url+"/v2/library/new/manifests/latest")
	if got := digest.FromString(body); status != http.StatusOK || got != img.Index.Digest {
		t.Errorf("from the new upstream: %d, %s", status, got)
	}
	if status, _ := r.read(t, r.url+"/v2/library/app/manifests/latest"); status != http.StatusOK {
		t.Errorf("what was cached before: %d", status)
	}
	if n := len(before.Requests()); n != 0 {
		t.Errorf("the old upstream got %d requests after the reload", n)
	}
}

// A reload adds and removes rules.
func TestReloadRules(t *testing.T) {
	t.Parallel()
	up := upstreamtest.New(t, upstreamtest.Options{})
	for _, repo := range []string{"library/app", "acme/app"} {
		up.AddImage(repo, "latest", upstreamtest.NewImage(1, 1000))
	}
	r := start(t, upstreams(up.URL))
	reload := func(rules, message string) {
		t.Helper()
		r.log.forget()
		r.configure(t, upstreams(up.URL)+rules)
		r.signals <- syscall.SIGHUP
		r.log.wait(t, `msg="configuration `+message)
	}
	asks := func(repo string, wantStatus, wantRequests int) string {
		t.Helper()
		up.Forget()
		status, body := r.read(t, r.url+"/v2/"+repo+"/manifests/latest")
		if n := len(up.Requests()); status != wantStatus || n != wantRequests {
			t.Errorf("%s: %d after %d requests upstream, want %d after %d: %s", repo, status, n, wantStatus, wantRequests, body)
		}
		return body
	}
	r.read(t, r.url+"/v2/library/app/manifests/latest")
	r.read(t, r.url+"/v2/acme/app/manifests/latest")
	asks("library/app", http.StatusOK, 0)

	reload("rules:\n- match: [docker.io/library/*]\n  access: deny\n- match: ['docker.io/acme/*:latest']\n  fresh_for: 0s\n", "reloaded")
	if body := asks("library/app", http.StatusNotFound, 0); !strings.Contains(body, "rules[0]") {
		t.Errorf("who is denied is not told by which rule: %s", body)
	}
	up.Forget()
	if status, _ := r.read(t, r.url+"/v2/acme/app/manifests/latest"); status != http.StatusOK || up.Count(upstreamtest.HeadManifest) != 1 {
		t.Errorf("a tag that is never fresh: %d after %d checks", status, up.Count(upstreamtest.HeadManifest))
	}

	reload("rules:\n- match: [docker.io/library/*]\n  access: refuse\n", "not reloaded") // no effect
	asks("library/app", http.StatusNotFound, 0)

	reload("", "reloaded")
	asks("library/app", http.StatusOK, 0)
}

// A pin applies from the start. A reload removes it.
func TestReloadPins(t *testing.T) {
	t.Parallel()
	up := upstreamtest.New(t, upstreamtest.Options{})
	add := func(repo string, seed uint64) upstreamtest.Content {
		b := upstreamtest.NewContent("", upstreamtest.Random(seed, 300<<10))
		up.AddBlob(repo, b)
		return b
	}
	base := add("acme/base", 1)
	for seed := uint64(2); base.Digest.Encoded()[0] != '0'; seed++ { // among blobs of the same age it is evicted first
		base = add("acme/base", seed)
	}
	const limit = "storage: {path: CACHE, min_free: 0, max_size: 1MiB}\n"
	r := start(t, limit+upstreams(up.URL)+"rules: [{match: [docker.io/acme/base], pin: true}]\n")
	pulls := 0
	pull := func(repo string, b upstreamtest.Content) {
		t.Helper()
		pulls++
		if status, body := r.read(t, r.url+"/v2/"+repo+"/blobs/"+b.Digest.String()); status != http.StatusOK || len(body) != len(b.Bytes) {
			t.Errorf("%s: %d, %d bytes", repo, status, len(body))
		}
	}
	hex := base.Digest.Encoded()
	file := filepath.Join(filepath.Dir(r.file), "cache", "blobs", "sha256", hex[:2], hex)
	kept := func() bool {
		_, err := os.Stat(file)
		return !errors.Is(err, fs.ErrNotExist)
	}
	pull("acme/base", base)
	for tick := time.NewTicker(time.Millisecond); !kept(); <-tick.C { // until it is durable
	}
	for seed := range uint64(10) {
		pull("library/app", add("library/app", 1000+seed))
	}
	pull("acme/base", base)
	pulls-- // it is stored
	if sent := up.Sent(base.Digest); sent != base.Size {
		t.Errorf("%d bytes of what is pinned from upstream, want %d", sent, base.Size)
	}

	r.configure(t, limit+upstreams(up.URL))
	r.signals <- syscall.SIGHUP
	r.log.wait(t, `msg="configuration reloaded"`)
	for seed := uint64(2000); kept(); seed++ { // until it is evicted
		pull("library/app", add("library/app", seed))
	}
	pull("acme/base", base)
	// A fill is passed through while the previous blob is in use. It costs a second GET.
	_, text := r.read(t, r.admin+"/metrics")
	passed, err := strconv.Atoi(regexp.MustCompile(`(?m)^cachalot_fills_passed_through_total (\d+)$`).FindStringSubmatch(text)[1])
	if err != nil {
		t.Fatal(err)
	}
	if got := up.Count(upstreamtest.GetBlob); got != pulls+passed {
		t.Errorf("%d blobs from upstream in %d pulls of what was not stored, %d of them passed through", got, pulls, passed)
	}
}

// A reload does not affect responses in progress.
func TestReloadKeepsRunningResponses(t *testing.T) {
	t.Parallel()
	r := stalled(t, "")
	other := upstreamtest.New(t, upstreamtest.Options{})
	r.configure(t, upstreams(other.URL))
	r.signals <- syscall.SIGHUP
	r.log.wait(t, `msg="configuration reloaded"`)
	r.finish(t)
}

func TestReloadOfBadFileChangesNothing(t *testing.T) {
	t.Parallel()
	up := upstreamtest.New(t, upstreamtest.Options{})
	up.AddImage("library/app", "latest", upstreamtest.NewImage(1, 1000))
	r := start(t, upstreams(up.URL))
	r.configure(t, "tags: {fresh_for: 60}\nlog: {level: loud}\n")
	r.signals <- syscall.SIGHUP
	r.log.wait(t, `level=ERROR msg="configuration not reloaded; the old one stays in effect" problem=".*tags.fresh_for`)
	r.log.wait(t, `level=ERROR msg="configuration not reloaded; the old one stays in effect" problem=".*log.level`)

	if status, body := r.read(t, r.url+"/v2/library/app/manifests/latest"); status != http.StatusOK {
		t.Errorf("%d %s", status, body)
	}
	if _, text := r.read(t, r.admin+"/metrics"); !strings.Contains(text, "\ncachalot_config_last_reload_successful 0\n") {
		t.Error("the metrics do not show the failed reload")
	}
}

// An empty or truncated file removes no configuration.
func TestReloadOfCutFileChangesNothing(t *testing.T) {
	t.Parallel()
	up := upstreamtest.New(t, upstreamtest.Options{})
	up.AddImage("team/app", "latest", upstreamtest.NewImage(1, 1000))
	r := start(t, fmt.Sprintf("default_upstream: registry.corp\nupstreams: {registry.corp: {url: %s}}\n", up.URL))
	for text, says := range map[string]string{
		"":                         "is empty",
		"# comments alone\n---\n":  "is empty",
		"listen: 127.0.0.1:0\n":    "has no upstreams, and the built-in ones",
		"tags: {fresh_for: 1m}\n#": "has no upstreams, and the built-in ones",
	} {
		if err := os.WriteFile(r.file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		r.signals <- syscall.SIGHUP
		r.log.wait(t, `level=ERROR msg="configuration not reloaded; the old one stays in effect" error=".*`+says)
		if status, body := r.read(t, r.url+"/v2/registry.corp/team/app/manifests/latest"); status != http.StatusOK {
			t.Errorf("after %q: %d %s", text, status, body)
		}
	}
}

// A client may name any public registry if the configuration allows it. The mirror does not
// dial a private address, and the log says why.
func TestUnlistedUpstreams(t *testing.T) {
	t.Parallel()
	up, within := upstreamtest.New(t, upstreamtest.Options{}), upstreamtest.New(t, upstreamtest.Options{})
	r := start(t, "unlisted_upstreams: allow\n"+upstreams(up.URL))
	for _, name := range []string{"169.254.169.254", "127.0.0.1:" + strings.TrimPrefix(within.Host(), "127.0.0.1:"), "localhost"} {
		status, body := r.get(t, r.url+"/v2/team/app/manifests/1?ns="+name)
		text, err := io.ReadAll(body)
		if status != http.StatusBadGateway || err != nil || !strings.Contains(string(text), ": the registry does not answer, or is not at a public address; the mirror's log says which (request ") {
			t.Errorf("%s: %d %s %v", name, status, text, err)
		}
		r.log.wait(t, `msg="egress refused" upstream="?`+regexp.QuoteMeta(name))
	}
	if received, _ := within.Wire(); received > 0 || up.Count() > 0 {
		t.Errorf("%d bytes reached a private address", received)
	}
	r = start(t, upstreams(up.URL))
	if status, _ := r.get(t, r.url+"/v2/team/app/manifests/1?ns=quay.io"); status != http.StatusNotFound {
		t.Errorf("denied by default: %d", status)
	}
}
