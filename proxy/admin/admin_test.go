package admin

import (
	"io"
	"net/http"
	"strings"
	"testing"

	ut "github.com/cachalot-registry/cachalot/upstream/upstreamtest"
)

// TestAdminListener: every path of the admin listener checks Host. Only a client that may
// change something gets profiles.
func TestAdminListener(t *testing.T) {
	t.Parallel()
	const secret = "canary-0123456789abcdef"
	token := func(c *Config) { c.Token = func() (string, string, error) { return "admin.token", secret, nil } }
	public := func(c *Config) { c.Loopback = false }
	both := func(c *Config) { token(c); public(c) }
	named := func(c *Config) { c.Hosts = []string{"mirror.example"} }
	reading := []string{"/metrics", "/healthz", "/readyz", "/api/v1/stats"}
	profiles := []string{"/debug/pprof/", "/debug/pprof/cmdline", "/debug/pprof/goroutine", "/debug/pprof/symbol"}
	for _, test := range []struct {
		name        string
		change      func(*Config)
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
