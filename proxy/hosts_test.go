package proxy

import (
	"io"
	"net/http"
	"strings"
	"testing"

	ut "github.com/cachalot-registry/cachalot/upstream/upstreamtest"
)

func TestHosts_Serves(t *testing.T) {
	t.Parallel()
	named := newHosts("mirror.example", "Hub.Example.", "*.ci.example")
	private := newHosts()
	private.private = true
	for _, tc := range []struct {
		hosts  *hosts
		host   string
		served bool
	}{
		{nil, "evil.example", true},
		{named, "mirror.example", true},
		{named, "MIRROR.example.:5000", true},
		{named, "hub.example", true},
		{named, "a.ci.example", true},
		{named, "a.b.ci.example:5000", true},
		{named, "ci.example", false},
		{named, "evilci.example", false},
		{named, "mirror.example.evil.example", false},
		{named, "a.mirror.example", false},
		{named, "mirror", false},
		{named, "mirror.ns.svc", false},
		{named, "evil.example:5000", false},
		// What no name server decides over.
		{named, "", true},
		{named, "127.0.0.1", true},
		{named, "10.1.2.3:5000", true},
		{named, "[::1]:5000", true},
		{named, "[fd00::1]", true},
		{named, "localhost:5000", true},
		{named, "LocalHost.", true},
		{named, "localhost.evil.example", false},
		{named, "127.0.0.1.evil.example", false},
		{named, "127.1", false},
		{named, "0x7f000001", false},
		{named, "2130706433", false},
		// What no public name server answers for.
		{private, "cachalot:5001", true},
		{private, "cachalot-0.mirror-headless.ns.svc:5001", true},
		{private, "mirror.ns.svc.cluster.local.", true},
		{private, "cachalot.dev", false},
		{private, "evil.cluster.local", false},
		{private, "svc.evil.example", false},
		{private, "evil.svc.example", false},
		{private, "evilsvc.example", false},
		{newHosts(), "cachalot:5001", false},
		{newHosts(), "mirror.ns.svc", false},
	} {
		if got := tc.hosts.serves(tc.host); got != tc.served {
			t.Errorf("%+v serves %q: %v", tc.hosts, tc.host, got)
		}
	}
}

// as makes a request that asks for another host than it reaches.
func (m *mirror) as(host, method, path string) reply {
	m.t.Helper()
	req, err := http.NewRequestWithContext(m.t.Context(), method, m.server.URL+path, http.NoBody)
	if err != nil {
		m.t.Fatal(err)
	}
	req.Host = host
	resp, err := m.client.Do(req)
	if err != nil {
		m.t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	a := reply{status: resp.StatusCode, header: resp.Header}
	a.body, a.err = io.ReadAll(resp.Body)
	return a
}

// TestHosts: who asks for another host gets nothing, of what is kept either.
func TestHosts(t *testing.T) {
	t.Parallel()
	up := ut.New(t, ut.Options{})
	img := up.AddImage("library/app", "1", ut.NewImage(1, 100))
	m := &mirror{t: t, dir: t.TempDir(), hosts: map[string][]string{"docker.io": {"Hub.mirror.example"}}}
	t.Cleanup(func() { m.stop() })
	m.start(func(c *Config) { c.Hosts = []string{"mirror.example"} }, registry(t, "docker.io", up.URL))
	const path = "/v2/library/app/manifests/1"
	for _, host := range []string{"mirror.example", "mirror.example:5000", "hub.mirror.example", "127.0.0.1:5000", "localhost"} {
		m.want(m.as(host, http.MethodGet, path), img.Index)
	}
	up.Forget()
	for _, method := range []string{http.MethodGet, http.MethodHead, http.MethodPost} {
		for _, path := range []string{path, "/", "/v2/", "/docker.io/v2/", "/v2/library/app/tags/list", "/nothing"} {
			a := m.as("evil.example:5000", method, path)
			if a.status != http.StatusMisdirectedRequest {
				t.Errorf("%s %s: %d", method, path, a.status)
			}
			if method == http.MethodGet {
				m.wantError(a, http.StatusMisdirectedRequest, "UNSUPPORTED")
				if !strings.Contains(string(a.body), `the mirror is not served as \"evil.example\"; ask for it by another of its names, or add this one to hosts in its configuration (request `) {
					t.Errorf("%s", a.body)
				}
			}
		}
	}
	counts(t, up, nil)

	m.restart(nil, registry(t, "docker.io", up.URL))
	m.want(m.as("whatever.example", http.MethodGet, path), img.Index)
}

// TestAdminListener: on all of the admin listener the Host is checked, and profiles are
// for who may change something.
func TestAdminListener(t *testing.T) {
	t.Parallel()
	const secret = "canary-0123456789abcdef"
	token := func(c *AdminConfig) { c.Token = func() (string, string, error) { return "admin.token", secret, nil } }
	public := func(c *AdminConfig) { c.Loopback = false }
	both := func(c *AdminConfig) { token(c); public(c) }
	named := func(c *AdminConfig) { c.Hosts = []string{"mirror.example"} }
	reading := []string{"/metrics", "/healthz", "/readyz", "/api/v1/stats"}
	profiles := []string{"/debug/pprof/", "/debug/pprof/cmdline", "/debug/pprof/goroutine", "/debug/pprof/symbol"}
	for _, test := range []struct {
		name        string
		change      func(*AdminConfig)
		host, token string
		reads       int
		profiles    int
	}{
		{"from this host", nil, "", "", 200, 200},
		{"by localhost", nil, "localhost:5001", "", 200, 200},
		{"by a name of it", named, "mirror.example:5001", "", 200, 200},
		{"by another site's name", nil, "evil.example", "", 421, 421},
		{"by a name that the network may give", nil, "cachalot:5001", "", 421, 421},
		{"by another site's name, with the token", token, "evil.example", secret, 200, 200},
		{"by another site's name, with another token", token, "evil.example", "x", 421, 421},
		{"without the token", token, "", "", 200, 401},
		{"of a cluster", public, "10.1.2.3:5001", "", 200, 403},
		{"of a cluster, by the Service's name", both, "cachalot-headless.ns.svc:5001", "", 200, 401},
		{"of a cluster, by a short name", both, "cachalot-headless:5001", secret, 200, 200},
		{"of a cluster, by another site's name", both, "evil.example:5001", "", 421, 421},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			up := ut.New(t, ut.Options{})
			a := newAdmin(t, newMirror(t, nil, registry(t, "docker.io", up.URL)), nil, test.change)
			ask := func(path string, want int) {
				req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, a.server.URL+path, http.NoBody)
				if err != nil {
					t.Fatal(err)
				}
				if test.host != "" {
					req.Host = test.host
				}
				if test.token != "" {
					req.Header.Set("Authorization", "Bearer "+test.token)
				}
				resp, err := a.server.Client().Do(req)
				if err != nil {
					t.Fatal(err)
				}
				defer func() { _ = resp.Body.Close() }()
				body, err := io.ReadAll(resp.Body)
				if err != nil || resp.StatusCode != want {
					t.Errorf("%s: %d %.300s (%v), want %d", path, resp.StatusCode, body, err, want)
				}
				if want == http.StatusMisdirectedRequest && !strings.Contains(string(body), `"code":"wrong_host"`) {
					t.Errorf("%s: %s", path, body)
				}
			}
			for _, path := range reading {
				ask(path, test.reads)
			}
			for _, path := range profiles {
				ask(path, test.profiles)
			}
			unknown := http.StatusNotFound
			if test.reads == http.StatusMisdirectedRequest {
				unknown = test.reads
			}
			ask("/nothing", unknown)
		})
	}
}
