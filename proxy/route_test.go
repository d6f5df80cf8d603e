package proxy

import (
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/cachalot-registry/cachalot/upstream"
	ut "github.com/cachalot-registry/cachalot/upstream/upstreamtest"
)

// router is a Proxy without a store, for parsing only.
func router(tb testing.TB, defaultUpstream string) *Proxy {
	tb.Helper()
	var all []Upstream
	for name, also := range map[string][]string{
		"docker.io": {"dockerhub", "index.docker.io"}, "quay.io": nil, "registry.example:5000": {"ours"}, "localhost": nil, "[2001:db8::1]:5000": nil,
	} {
		r, err := upstream.New(upstream.Config{Name: name, URLs: []string{"https://" + name}}, upstream.NewMetrics(), slog.New(slog.DiscardHandler))
		if err != nil {
			tb.Fatal(err)
		}
		tb.Cleanup(r.Close)
		u := Upstream{Registry: r, Aliases: also}
		if name == "quay.io" {
			u.Hosts = []string{"quay.mirror.example"}
		}
		all = append(all, u)
	}
	known, err := newRegistries(all, defaultUpstream, nil, slog.New(slog.DiscardHandler))
	if err != nil {
		tb.Fatal(err)
	}
	return &Proxy{cfg: Config{DefaultUpstream: defaultUpstream}, registries: known}
}

// TestRoute: every way to name a registry, alone and combined.
func TestRoute(t *testing.T) {
	t.Parallel()
	const none = ""
	for _, tc := range []struct {
		byDefault, host, path string
		registry, repo        string // "" if refused
	}{
		// Nothing names a registry.
		{"docker.io", none, "/v2/alpine/manifests/1", "docker.io", "library/alpine"},
		{"docker.io", none, "/v2/library/alpine/manifests/1", "docker.io", "library/alpine"},
		{"docker.io", none, "/v2/grafana/grafana/manifests/1", "docker.io", "grafana/grafana"},
		{"quay.io", none, "/v2/alpine/manifests/1", "quay.io", "alpine"},
		{"quay.io", none, "/v2/my.group/app/manifests/1", "quay.io", "my.group/app"},
		// ?ns=
		{"docker.io", none, "/v2/team/app/manifests/1?ns=quay.io", "quay.io", "team/app"},
		{"docker.io", none, "/v2/app/manifests/1?ns=registry.example:5000", "registry.example:5000", "app"},
		{"docker.io", none, "/v2/app/manifests/1?ns=ours", "registry.example:5000", "app"},
		{"quay.io", none, "/v2/alpine/manifests/1?ns=docker.io", "docker.io", "library/alpine"},
		{"quay.io", none, "/v2/library/alpine/manifests/1?ns=index.docker.io", "docker.io", "library/alpine"},
		{"docker.io", none, "/v2/my.group/app/manifests/1?ns=quay.io", "quay.io", "my.group/app"},
		{"docker.io", none, "/v2/team/app/manifests/1?ns=QUAY.io", "quay.io", "team/app"},
		{"docker.io", none, "/v2/app/manifests/1?ns=ghcr.io", "", ""},
		{"docker.io", none, "/v2/team/app/manifests/1?ns=quay.io:443", "quay.io", "team/app"},
		{"docker.io", none, "/v2/team/app/manifests/1?ns=quay.io.:0443", "quay.io", "team/app"},
		{"docker.io", none, "/v2/team/app/manifests/1?ns=Registry.Example:05000", "registry.example:5000", "team/app"},
		{"quay.io", none, "/v2/alpine/manifests/1?ns=registry.hub.docker.com", "docker.io", "library/alpine"},
		{"quay.io", none, "/v2/alpine/manifests/1?ns=registry-1.docker.io:443", "docker.io", "library/alpine"},
		{"docker.io", none, "/v2/app/manifests/1?ns=169.254.169.254", "", ""},
		// After /v2.
		{"docker.io", none, "/v2/quay.io/team/app/manifests/1", "quay.io", "team/app"},
		{"docker.io", none, "/v2/docker.io/library/alpine/manifests/1", "docker.io", "library/alpine"},
		{"docker.io", none, "/v2/docker.io/alpine/manifests/1", "docker.io", "library/alpine"},
		{"docker.io", none, "/v2/registry.example:5000/a/b/c/manifests/1", "registry.example:5000", "a/b/c"},
		{"docker.io", none, "/v2/registry.example.5000/app/manifests/1", "registry.example:5000", "app"},
		{"docker.io", none, "/v2/registry.example.5000/app/manifests/1?ns=registry.example:5000", "registry.example:5000", "app"},
		{"docker.io", none, "/v2/localhost/app/manifests/1", "localhost", "app"},
		{"docker.io", none, "/v2/bad_name.example/org/app/manifests/1", "", ""},
		{"docker.io", none, "/v2/bad_name:5000/app/manifests/1", "", ""},
		{"docker.io", none, "/v2/a..b/app/manifests/1", "", ""},
		{"docker.io", none, "/v2/quay.io:0/app/manifests/1", "", ""},
		{"docker.io", none, "/v2/[2001:db8::1]:5000/app/manifests/1", "[2001:db8::1]:5000", "app"},
		{"docker.io", none, "/v2/[2001:db8::1]:5000/team/app/manifests/1?ns=[2001:db8::1]:5000", "[2001:db8::1]:5000", "team/app"},
		{"docker.io", none, "/v2/[2001:db8::2]:5000/app/manifests/1", "", ""},
		{"docker.io", none, "/v2/docker.io./alpine/manifests/1?ns=docker.io", "docker.io", "library/alpine"},
		{"docker.io", none, "/v2/dockerhub/library/alpine/manifests/1", "docker.io", "library/alpine"},
		{"docker.io", none, "/v2/dockerhub/app/manifests/1", "docker.io", "dockerhub/app"}, // an account's name
		{"docker.io", none, "/v2/Quay.io:443/team/app/manifests/1", "quay.io", "team/app"},
		{"quay.io", none, "/v2/registry.hub.docker.com/alpine/manifests/1", "docker.io", "library/alpine"},
		{"docker.io", none, "/v2/ghcr.io/a/b/manifests/1", "", ""},
		{"docker.io", none, "/v2/169.254.169.254/a/manifests/1", "", ""},
		{"docker.io", none, "/v2/quay.io/manifests/1", "docker.io", "library/quay.io"}, // no repository after the name
		// After /v2 and ?ns=.
		{"docker.io", none, "/v2/quay.io/team/app/manifests/1?ns=quay.io", "quay.io", "team/app"},
		{"docker.io", none, "/v2/docker.io/library/alpine/manifests/1?ns=docker.io", "docker.io", "library/alpine"},
		{"docker.io", none, "/v2/index.docker.io/library/alpine/manifests/1?ns=docker.io", "docker.io", "library/alpine"},
		{"docker.io", none, "/v2/quay.io/team/app/manifests/1?ns=docker.io", "quay.io", "team/app"},
		{"docker.io", none, "/v2/dockerhub/a/b/manifests/1?ns=quay.io", "quay.io", "dockerhub/a/b"}, // ?ns= names the registry
		// Before /v2.
		{"docker.io", none, "/quay.io/v2/team/app/manifests/1", "quay.io", "team/app"},
		{"docker.io", none, "/Quay.IO/v2/team/app/manifests/1", "quay.io", "team/app"},
		{"docker.io", none, "/dockerhub/v2/alpine/manifests/1", "docker.io", "library/alpine"},
		{"docker.io", none, "/docker.io/v2/library/alpine/manifests/1?ns=docker.io", "docker.io", "library/alpine"},
		{"docker.io", none, "/quay.io/v2/quay.io/team/app/manifests/1?ns=quay.io", "quay.io", "team/app"},
		{"docker.io", none, "/quay.io:0443/v2/quay.io:443/team/app/manifests/1?ns=QUAY.IO.", "quay.io", "team/app"},
		{"docker.io", none, "/quay.io/v2/team/app/manifests/1?ns=docker.io", "quay.io", "team/app"},
		{"docker.io", none, "/quay.io/v2/docker.io/app/manifests/1", "quay.io", "docker.io/app"},
		{"docker.io", none, "/ghcr.io/v2/a/b/manifests/1", "", ""},
		{"docker.io", none, "/ghcr.io/v2/a/b/manifests/1?ns=quay.io", "", ""},
		// A virtual host.
		{"docker.io", "quay.mirror.example", "/v2/team/app/manifests/1", "quay.io", "team/app"},
		{"docker.io", "QUAY.mirror.example.:5000", "/v2/team/app/manifests/1", "quay.io", "team/app"},
		{"docker.io", "quay.mirror.example", "/v2/alpine/manifests/1?ns=docker.io", "docker.io", "library/alpine"},
		{"docker.io", "quay.mirror.example", "/v2/quay.io/team/app/manifests/1", "quay.io", "team/app"},
		{"docker.io", "quay.mirror.example", "/v2/my.group/app/manifests/1", "quay.io", "my.group/app"},
		{"docker.io", "[::1]:5000", "/v2/alpine/manifests/1", "docker.io", "library/alpine"},
	} {
		got, err := targetOf(t, router(t, tc.byDefault), tc.host, tc.path)
		name := ""
		if err == nil {
			name = got.registry.Name()
		}
		if name != tc.registry || got.repo != tc.repo {
			t.Errorf("%s %s: %s %s (%v), want %s %s", tc.host, tc.path, name, got.repo, err, tc.registry, tc.repo)
		}
	}
}

// targetOf finds the target of a request as the Proxy does.
func targetOf(tb testing.TB, p *Proxy, host, path string) (got target, err error) {
	tb.Helper()
	r := httptest.NewRequestWithContext(tb.Context(), http.MethodGet, "/", http.NoBody)
	r.Host = host
	r.URL, err = r.URL.Parse(path)
	if err != nil {
		return got, err
	}
	req, ok := parseRequest(r)
	if !ok {
		return got, http.ErrNoLocation
	}
	return p.target(req, "")
}

// FuzzRoute checks that an accepted request goes to a configured registry with a valid
// name, for any path, host and ns.
func FuzzRoute(f *testing.F) {
	for _, s := range []string{"alpine", "quay.io/a/b", "a/../b", "a%2fb", "dockerhub/x/y", "localhost/x", "registry.example:5000/x", "//", "quay.io/quay.io/x"} {
		f.Add("", s, "", "")
		f.Add("quay.io", s, "docker.io", "quay.mirror.example")
	}
	p := router(f, "docker.io")
	f.Fuzz(func(t *testing.T, prefix, name, ns, host string) {
		path := contentPath{registry: prefix, name: name, kind: upstream.KindManifest, reference: "1"}
		got, err := p.target(request{contentPath: path, host: host, namespace: ns}, "")
		if err != nil {
			return
		}
		if !nameRegexp().MatchString(got.repo) || strings.Contains(got.repo, "..") || got.registry == nil {
			t.Errorf("%q %q %q %q: %+v", prefix, name, ns, host, got)
		}
		if prefix != "" && got.registry != p.registries.configured(prefix) {
			t.Errorf("%q before /v2 led to %s", prefix, got.registry.Name())
		}
	})
}

// TestNames: an image is stored once, for every way to name its registry.
func TestNames(t *testing.T) {
	t.Parallel()
	hub, quay := ut.New(t, ut.Options{}), ut.New(t, ut.Options{})
	img := quay.AddImage("team/app", "1", ut.NewImage(50, 1000))
	m := newMirror(t, nil, registry(t, "docker.io", hub.URL), registry(t, "quay.io", quay.URL))
	m.aliases = map[string][]string{"quay.io": {"redhat"}}
	m.restart(nil, registry(t, "docker.io", hub.URL), registry(t, "quay.io", quay.URL))
	for _, form := range []string{
		"/v2/team/app%s?ns=quay.io", "/v2/quay.io/team/app%s", "/quay.io/v2/team/app%s", "/redhat/v2/team/app%s",
		"/v2/redhat/team/app%s", "/v2/quay.io/team/app%s?ns=quay.io",
	} {
		at := func(rest string) string { return strings.Replace(form, "%s", rest, 1) }
		a := m.get(at("/manifests/1"))
		m.want(a, img.Index)
		if used := strings.Contains(form, "ns="); (a.header.Get("OCI-Namespace") == "quay.io") != used {
			t.Errorf("%s: OCI-Namespace %q", form, a.header.Get("OCI-Namespace"))
		}
		m.want(m.get(at("/blobs/"+img.Layers[0].Digest.String())), img.Layers[0])
		if a := m.get(at("/tags/list")); a.status != http.StatusOK {
			t.Errorf("%s: tags: %d", form, a.status)
		}
	}
	quay.WantCounts(t, map[ut.Op]int{ut.HeadManifest: 1, ut.GetManifest: 1, ut.GetBlob: 1, ut.Tags: 1})
	hub.WantCounts(t, nil)
	for path, status := range map[string]int{"/quay.io/v2/": 200, "/redhat/v2/": 200, "/quay.io/v2": 200, "/ghcr.io/v2/": 404, "/%2e%2e/v2/": 404} {
		if a := m.get(path); a.status != status || a.header.Get("Docker-Distribution-Api-Version") == "" {
			t.Errorf("%s: %d, want %d", path, a.status, status)
		}
	}
}

// TestUnlisted: an unlisted registry is reached if that is allowed, in every way to name
// it. Its images are stored once.
func TestUnlisted(t *testing.T) {
	t.Parallel()
	hub, other := ut.New(t, ut.Options{}), ut.New(t, ut.Options{})
	img := other.AddImage("team/app", "1", ut.NewImage(51, 1000))
	var asked []string
	var mu sync.Mutex // guards asked
	allow := func(c *Config) {
		c.Unlisted = func(name string) (*upstream.Registry, error) {
			mu.Lock()
			asked = append(asked, name)
			mu.Unlock()
			if name != "other.example" {
				return nil, errors.New("not this one")
			}
			return registry(t, name, other.URL), nil
		}
	}
	m := newMirror(t, allow, registry(t, "docker.io", hub.URL))
	for _, form := range []string{
		"/v2/team/app%s?ns=other.example", "/v2/other.example/team/app%s", "/other.example/v2/team/app%s", "/v2/other.example/team/app%s?ns=other.example",
	} {
		m.want(m.get(strings.Replace(form, "%s", "/manifests/1", 1)), img.Index)
		m.want(m.get(strings.Replace(form, "%s", "/blobs/"+img.Layers[0].Digest.String(), 1)), img.Layers[0])
	}
	other.WantCounts(t, map[ut.Op]int{ut.HeadManifest: 1, ut.GetManifest: 1, ut.GetBlob: 1})
	for _, path := range []string{"/v2/a/b/manifests/1?ns=evil.example", "/v2/evil.example/a/manifests/1", "/v2/a/manifests/1?ns=word", "/v2/a/manifests/1?ns=" + strings.Repeat("a.", 200) + "b"} {
		m.wantError(m.get(path), http.StatusNotFound, "NAME_UNKNOWN")
	}
	hub.WantCounts(t, nil)
	mu.Lock()
	defer mu.Unlock()
	if got := strings.Join(asked, " "); got != "other.example evil.example evil.example" {
		t.Errorf("made: %s", got)
	}
	if got := testutil.ToFloat64(m.metrics.requests.WithLabelValues(upstream.UnlistedLabel, "blob", "hit")); got != 3 {
		t.Errorf("%v hits under %q", got, upstream.UnlistedLabel)
	}
}

// TestOneSpelling: a rule applies to every spelling of a registry. An unlisted registry has
// one entry for all spellings.
func TestOneSpelling(t *testing.T) {
	t.Parallel()
	hub, corp, other := ut.New(t, ut.Options{}), ut.New(t, ut.Options{}), ut.New(t, ut.Options{})
	img := other.AddImage("team/app", "1", ut.NewImage(51, 1000))
	var made []string
	var mu sync.Mutex // guards made
	m := newMirror(t, func(c *Config) {
		c.Rules = []Rule{
			{Match: []string{"docker.io/secret/**", "corp/**", "denied.example/**", "denied.example:8443/**"}, Access: deny},
		}
		c.Unlisted = func(name string) (*upstream.Registry, error) {
			mu.Lock()
			defer mu.Unlock()
			made = append(made, name)
			return registry(t, name, other.URL), nil
		}
	}, registry(t, "docker.io", hub.URL), registry(t, "corp", corp.URL))
	for _, name := range []string{
		"docker.io/secret", "Docker.io/secret", "docker.io:443/secret", "docker.io:0443/secret", "docker.io./secret", "docker.io.:443/secret",
		"index.docker.io/secret", "registry-1.docker.io/secret", "registry.hub.docker.com/secret", "REGISTRY.hub.docker.com:00443/secret",
		corp.Host() + "/x", strings.Replace(corp.Host(), ":", ":0", 1) + "/x",
		"denied.example/x", "Denied.Example/x", "denied.example:443/x", "denied.example./x", "denied.example:08443/x", "denied.example.:8443/x",
	} {
		registry, repo, _ := strings.Cut(name, "/")
		for _, path := range []string{"/v2/" + repo + "/app/manifests/1?ns=" + registry, "/v2/" + name + "/app/manifests/1", "/" + registry + "/v2/" + repo + "/app/manifests/1"} {
			a := m.get(path)
			if m.wantError(a, http.StatusNotFound, "NAME_UNKNOWN"); !strings.Contains(string(a.body), "denies it") {
				t.Errorf("%s: %s", path, a.body)
			}
		}
	}
	for _, u := range []*ut.Registry{hub, corp, other} {
		u.WantCounts(t, nil)
	}
	for _, name := range []string{"open.example", "Open.example", "open.example:443", "open.example.:0443"} {
		m.want(m.get("/v2/team/app/manifests/1?ns="+name), img.Index)
		m.want(m.get("/v2/"+name+"/team/app/manifests/1"), img.Index)
	}
	other.WantCounts(t, map[ut.Op]int{ut.HeadManifest: 1, ut.GetManifest: 1})
	mu.Lock()
	defer mu.Unlock()
	if got := strings.Join(made, " "); got != "denied.example denied.example:8443 open.example" {
		t.Errorf("made: %s", got)
	}
}

// TestManyNames: requests to a registry continue while clients name many others.
func TestManyNames(t *testing.T) {
	t.Parallel()
	hub, other := ut.New(t, ut.Options{}), ut.New(t, ut.Options{Auth: ut.Bearer})
	img := other.AddImage("team/app", "1", ut.NewImage(51, 1000))
	m := newMirror(t, func(c *Config) {
		c.TrustedProxies, c.ForwardedHeader = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}, "X-Forwarded-For"
		c.Unlisted = func(name string) (*upstream.Registry, error) {
			return registry(t, name, other.URL, func(c *upstream.Config) { c.Timeouts.ResponseHeader = 10 * time.Minute }), nil // it pauses during all other requests
		}
	}, registry(t, "docker.io", hub.URL))
	arrived, gate := make(chan struct{}), make(chan struct{})
	other.Fault(ut.Match{Op: ut.Token, Times: 1}, ut.Arrived(arrived), ut.Pause(gate))
	done := make(chan reply)
	go func() { done <- m.get("/v2/team/app/manifests/1?ns=used.example") }()
	<-arrived
	for n := range 2 * maxUnlisted {
		if a := m.get(fmt.Sprintf("/n%d.example/v2/", n), "X-Forwarded-For", fmt.Sprintf("192.0.2.%d", n)); a.status != http.StatusOK { // /v2/ sends no upstream request
			t.Errorf("n%d.example: %d", n, a.status)
		}
	}
	close(gate)
	m.want(<-done, img.Index)
}

// TestUnlisted_WordOpensNothing: a client may run an unlisted registry. Its claim to have
// content gives no access to another registry's content; a download from it does.
func TestUnlisted_WordOpensNothing(t *testing.T) {
	t.Parallel()
	private, stranger := ut.New(t, ut.Options{}), ut.New(t, ut.Options{})
	img := private.AddImage("team/secret", "1", ut.NewImage(52, 1000))
	allow := func(c *Config) {
		c.Unlisted = func(name string) (*upstream.Registry, error) { return registry(t, name, stranger.URL), nil }
	}
	m := newMirror(t, allow, registry(t, "docker.io", private.URL))
	m.pull("team/secret", "1", img)
	m.settle()
	layer := img.Layers[0]
	lies := []*ut.Scripted{
		stranger.Fault(ut.Match{Op: ut.HeadBlob}, ut.Body("", layer.Bytes)),
		stranger.Fault(ut.Match{Op: ut.HeadManifest}, ut.Body(img.Index.MediaType, img.Index.Bytes), ut.LyingDigest(img.Index.Digest)),
	}
	paths := []string{"/blobs/" + layer.Digest.String(), "/manifests/" + img.Index.Digest.String(), "/manifests/latest"}
	for _, path := range paths {
		if a := m.get("/v2/evil.example/a/b" + path); a.status != http.StatusNotFound {
			t.Errorf("%s: %d, %d bytes", path, a.status, len(a.body))
		}
		if a := m.head("/v2/evil.example/a/c" + path); a.status != http.StatusNotFound {
			t.Errorf("HEAD %s: %d", path, a.status)
		}
	}
	for _, l := range lies {
		l.Remove()
	}
	stranger.AddImage("x/y", "latest", img)
	m.pull("stranger.example/x/y", "latest", img)
}
