package conformance

import (
	"fmt"
	"io"
	"log"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"go.uber.org/goleak"

	"github.com/cachalot-registry/cachalot/test/cachalotd"
	ut "github.com/cachalot-registry/cachalot/upstream/upstreamtest"
)

// everything enables all of the suite, also what is off by default.
func everything() switches { return switches{"OCI_VERSION": "dev", "OCI_DATA_SPARSE": "true"} }

// noDeletes is everything without deletes.
func noDeletes() switches {
	return everything().with(switches{"OCI_API_BLOBS_DELETE": "false", "OCI_API_MANIFESTS_DELETE": "false", "OCI_API_TAGS_DELETE": "false"})
}

// readOnly makes the suite read existing content and push nothing. The suite checks a
// digest header only if it knows the body; pullAll checks the others.
func (c content) readOnly() switches {
	return switches{
		"OCI_API_PUSH":                    "false",
		"OCI_API_MANIFESTS_DIGEST_HEADER": "false",
		"OCI_RO_DATA_TAGS":                strings.Join(slices.Sorted(maps.Keys(c.tags)), " "),
		"OCI_RO_DATA_MANIFESTS":           strings.Join(c.manifests, " "),
		"OCI_RO_DATA_BLOBS":               strings.Join(c.blobs, " "),
		"OCI_RO_DATA_REFERRERS":           strings.Join(c.subjects, " "),
	}
}

// startMirror runs cachalot in front of a registry.
func startMirror(t *testing.T, registry, tags string) *cachalotd.Process {
	t.Helper()
	return cachalotd.Start(t, fmt.Sprintf("storage: {path: %q, min_free: 0}\ndefault_upstream: registry.example\nupstreams: {registry.example: {url: %s}}\ntags: {%s}\n", t.TempDir(), registry, tags))
}

// neverAskedFor are the tests with random names, which no mirror can have stored.
func neverAskedFor() []string {
	return []string{"empty/referrers", "missing-manifest/by-digest", "missing-manifest/by-tag"}
}

// TestReadOnly: a mirror passes cold, warm, and with the upstream down except for names
// that were never requested. Warm it fetches no content.
func TestReadOnly(t *testing.T) {
	program(t, "conformance")
	for _, c := range []struct {
		name, tags string
		checked    bool // each tag and list is checked at each request
	}{
		{name: "fresh", tags: "fresh_for: 1h"},
		{name: "checked", tags: "fresh_for: 0s", checked: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Cleanup(func() { goleak.VerifyNone(t) })
			registry := startOlareg(t)
			relay := ut.NewRelay(t, registry.URL)
			all := load(t, relay)
			mirror := startMirror(t, relay.URL, c.tags)
			run := func(name string) outcome {
				t.Helper()
				o := runSuite(t, name, mirror.URL, noDeletes().with(all.readOnly()))
				documented(t, "read-only", name, o)
				return o
			}

			relay.Forget()
			if o := run("cold"); o.failed > 0 {
				t.Errorf("cold: %v", o.failures)
			}
			all.onceEach(t, relay)

			relay.Forget()
			if o := run("warm"); o.failed > 0 {
				t.Errorf("warm: %v", o.failures)
			}
			all.pullAll(t, "warm", mirror.URL)
			all.nothingAgain(t, relay, c.checked)

			registry.Kill()
			relay.Down()
			o := run("upstream gone")
			if got := o.failing(); !slices.Equal(got, neverAskedFor()) {
				t.Errorf("upstream gone: these fail: %q, want %q: %v", got, neverAskedFor(), o.failures)
			}
			unavailable := regexp.MustCompile(`received 50[234]\b`)
			for _, f := range o.failures {
				if !unavailable.MatchString(f.reason) {
					t.Errorf("upstream gone: %s: %s; want status 502, 503 or 504", f.name, f.reason)
				}
			}
			all.pullAll(t, "upstream gone", mirror.URL)
		})
	}
}

// onceEach: a cold mirror fetches each name once.
func (c content) onceEach(t *testing.T, relay *ut.Relay) {
	t.Helper()
	for op, names := range map[ut.Op][]string{ut.GetManifest: c.manifests, ut.GetBlob: c.blobs} {
		for _, name := range names {
			if got := len(relay.Select(ut.Match{Op: op, Repo: repository, Reference: name})); got > 1 {
				t.Errorf("cold: %s %s: %d times", op, name, got)
			}
		}
	}
	if got := relay.Count(ut.GetBlob); got < len(c.blobs) {
		t.Errorf("cold: %d blobs fetched of %d: was the mirror asked?", got, len(c.blobs))
	}
}

// nothingAgain: a warm mirror fetches no content. It only checks tags and lists if they are due.
func (c content) nothingAgain(t *testing.T, relay *ut.Relay, checked bool) {
	t.Helper()
	if got := relay.SentAll(); got != 0 {
		t.Errorf("warm: %d bytes of blobs and manifests again", got)
	}
	known := map[string]bool{}
	for _, list := range [][]string{slices.Collect(maps.Keys(c.tags)), c.manifests, c.blobs, c.subjects} {
		for _, name := range list {
			known[name] = true
		}
	}
	checks, asked := 0, map[string]bool{}
	for _, q := range relay.Requests() {
		_, tag := c.tags[q.Reference]
		switch {
		case q.Op == ut.Ping: // a ping names no content
		case q.Op == ut.Tags, known[q.Reference]:
			if !checked || q.Op == ut.HeadManifest && !tag || q.Op != ut.Tags && q.Op != ut.Referrers && q.Op != ut.HeadManifest {
				t.Errorf("warm: %s %s, which it has", q.Method, q.Path)
			}
			checks++
		default:
			asked[q.Reference] = true
		}
	}
	if len(asked) != len(neverAskedFor()) {
		t.Errorf("warm: %d unknown names asked for, want %d: %v", len(asked), len(neverAskedFor()), asked)
	}
	if checked && checks == 0 {
		t.Error("warm: no tag was checked")
	}
}

// TestFull: a registry with a mirror for its reads passes the same checks as the registry alone.
func TestFull(t *testing.T) {
	program(t, "conformance")
	for _, c := range []struct {
		name, level, tags string
		on                switches
		least             int // passed checks
	}{
		// The suite's defaults. The mirror still serves deleted content for a while.
		{"default", "full", "fresh_for: 1ms", switches{
			"OCI_VERSION": "1.1", "OCI_API_BLOBS_ATOMIC": "false", "OCI_API_MANIFESTS_ATOMIC": "false", "OCI_API_TAGS_ATOMIC": "false",
		}, 650},
		// A deletion and a new push of a tag are visible at once.
		{"everything", "full, all switches", "fresh_for: 1ms, negative_for: 1ms", everything().with(switches{
			"OCI_API_BLOBS_ATOMIC": "false", "OCI_API_MANIFESTS_ATOMIC": "false",
		}), 850},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Cleanup(func() { goleak.VerifyNone(t) })
			registry := startOlareg(t)
			mirror := startMirror(t, registry.URL, c.tags)
			router, reads := startRouter(t, registry.URL, mirror.URL)
			o := runSuite(t, "through cachalot", router, c.on)
			if o.failed > 0 || o.passed < c.least {
				t.Errorf("%d failed, want 0; %d passed, want %d or more: %v", o.failed, o.passed, c.least, o.failures)
			}
			if got := reads.Load(); got < 300 {
				t.Errorf("%d reads went to cachalot, want 300 or more", got)
			}
			documented(t, c.level, "pushes go to the registry", o)

			direct := runSuite(t, "the registry itself", registry.URL, c.on)
			if direct.passed != o.passed || !slices.Equal(direct.skips, o.skips) {
				t.Error("cachalot makes a difference")
			}
		})
	}
}

// startRouter sends writes and their requests to the registry, and reads to the mirror. It
// counts the reads.
func startRouter(t *testing.T, registry, mirror string) (string, *atomic.Int64) {
	t.Helper()
	transport := &http.Transport{DisableCompression: true}
	to := func(address string) http.Handler {
		target, err := url.Parse(address)
		if err != nil {
			t.Fatal(err)
		}
		return &httputil.ReverseProxy{
			Rewrite: func(r *httputil.ProxyRequest) {
				r.SetURL(target)
				r.Out.Host = r.In.Host // uploads continue at the same host
			},
			Transport: transport,
			ErrorLog:  log.New(io.Discard, "", 0),
		}
	}
	writes, reads, count := to(registry), to(mirror), &atomic.Int64{}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		read := r.Method == http.MethodGet || r.Method == http.MethodHead
		if read && !strings.Contains(r.URL.Path, "/blobs/uploads/") {
			count.Add(1)
			reads.ServeHTTP(w, r)
			return
		}
		writes.ServeHTTP(w, r)
	}))
	t.Cleanup(func() {
		server.Close()
		transport.CloseIdleConnections()
	})
	return server.URL, count
}
