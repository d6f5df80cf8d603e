package proxy

import (
	"io"
	"net/http"
	"strings"
	"testing"

	ut "github.com/cachalot-registry/cachalot/upstream/upstreamtest"
)

// as sends a request with this Host header.
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

// TestHosts: a request for another host gets nothing, not even stored content.
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
	up.WantCounts(t, nil)

	m.restart(nil, registry(t, "docker.io", up.URL))
	m.want(m.as("whatever.example", http.MethodGet, path), img.Index)
}
