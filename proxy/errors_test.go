package proxy

import (
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/cachalot-registry/cachalot/bounds"
	"github.com/cachalot-registry/cachalot/upstream"
	ut "github.com/cachalot-registry/cachalot/upstream/upstreamtest"
)

// TestHostileRequests: each gets an OCI error, and no upstream request is sent.
func TestHostileRequests(t *testing.T) {
	t.Parallel()
	up := ut.New(t, ut.Options{})
	m := newMirror(t, nil, registry(t, "docker.io", up.URL))
	ok := "sha256:" + strings.Repeat("a", 64)
	for _, tc := range []struct {
		method, path string
		status       int
		code         string
	}{
		{"GET", "/v2/../../etc/passwd/manifests/1", 400, "NAME_INVALID"},
		{"GET", "/v2/a/../b/manifests/1", 400, "NAME_INVALID"},
		{"GET", "/v2/a%2f..%2fb/manifests/1", 400, "NAME_INVALID"},
		{"GET", "/v2/a%2fb/manifests/1", 400, "NAME_INVALID"},
		{"GET", "/v2/a%00b/manifests/1", 400, "NAME_INVALID"},
		{"GET", "/v2/%00/manifests/1", 400, "NAME_INVALID"},
		{"GET", "/v2/A/manifests/1", 400, "NAME_INVALID"},
		{"GET", "/v2/a//b/manifests/1", 400, "NAME_INVALID"},
		{"GET", "/v2/" + strings.Repeat("a", 5000) + "/manifests/1", 400, "NAME_INVALID"},
		{"GET", "/v2/a/manifests/.INVALID_MANIFEST_NAME", 404, "MANIFEST_UNKNOWN"},
		{"HEAD", "/v2/a/manifests/.INVALID_MANIFEST_NAME", 404, ""},
		{"GET", "/v2/a/manifests/.hidden", 404, "MANIFEST_UNKNOWN"},
		{"GET", "/v2/a/manifests/" + strings.Repeat("t", 129), 404, "MANIFEST_UNKNOWN"},
		{"GET", "/v2/a/manifests/1%2f2", 404, "MANIFEST_UNKNOWN"},
		{"GET", "/v2/a/manifests/%00", 404, "MANIFEST_UNKNOWN"},
		{"GET", "/v2/a/manifests/sha256:abc", 400, "DIGEST_INVALID"},
		{"GET", "/v2/a/manifests/sha256:" + strings.Repeat("A", 64), 400, "DIGEST_INVALID"},
		{"GET", "/v2/a/manifests/sha384:" + strings.Repeat("a", 96), 400, "DIGEST_INVALID"},
		{"GET", "/v2/a/blobs/latest", 400, "DIGEST_INVALID"},
		{"GET", "/v2/a/blobs/sha256:..%2f..%2f" + strings.Repeat("a", 58), 400, "DIGEST_INVALID"},
		{"GET", "/v2/a/blobs/md5:d41d8cd98f00b204e9800998ecf8427e", 400, "DIGEST_INVALID"},
		{"GET", "/v2/a/referrers/latest", 400, "DIGEST_INVALID"},
		{"GET", "/v2/a/tags/list?n=-1", 400, "PAGINATION_NUMBER_INVALID"},
		{"GET", "/v2/a/tags/list?n=x", 400, "PAGINATION_NUMBER_INVALID"},
		{"GET", "/v2/a/tags/list?n=99999999999999999999", 400, "PAGINATION_NUMBER_INVALID"},
		{"GET", "/v2/a/manifests/1?ns=nobody.example", 404, "NAME_UNKNOWN"},
		{"GET", "/v2/a/manifests/1?ns=169.254.169.254", 404, "NAME_UNKNOWN"},
		{"GET", "/v2/a/manifests/1?ns=" + strings.Repeat("x", 5000), 404, "NAME_UNKNOWN"},
		{"GET", "/v2/_catalog", 404, "UNSUPPORTED"},
		{"GET", "/v2/a/b/c", 404, "UNSUPPORTED"},
		{"GET", "/v3/", 404, "UNSUPPORTED"},
		{"GET", "//", 404, "UNSUPPORTED"},
		{"GET", "/index.html", 404, "UNSUPPORTED"},
		{"POST", "/", 405, "UNSUPPORTED"},
		{"PUT", "/v2/a/manifests/1", 405, "UNSUPPORTED"},
		{"DELETE", "/v2/a/manifests/" + ok, 405, "UNSUPPORTED"},
		{"DELETE", "/v2/a/blobs/" + ok, 405, "UNSUPPORTED"},
		{"POST", "/v2/a/blobs/uploads/", 405, "UNSUPPORTED"},
		{"POST", "/v2/a/blobs/uploads/?mount=" + ok + "&from=b", 405, "UNSUPPORTED"},
		{"PATCH", "/v2/a/blobs/uploads/1", 405, "UNSUPPORTED"},
		{"PUT", "/v2/", 405, "UNSUPPORTED"},
		{"BREW", "/v2/a/manifests/1", 405, "UNSUPPORTED"},
	} {
		t.Run(tc.method+" "+bounds.Text(tc.path), func(t *testing.T) {
			a := m.do(tc.method, tc.path)
			m.wantError(a, tc.status, tc.code)
			if len(a.body) > 4096 {
				t.Errorf("an error of %d bytes", len(a.body))
			}
		})
	}
	up.WantCounts(t, nil)
}

// TestRawRequests sends paths that a URL parser would clean.
func TestRawRequests(t *testing.T) {
	t.Parallel()
	up := ut.New(t, ut.Options{})
	m := newMirror(t, nil, registry(t, "docker.io", up.URL))
	for _, raw := range []string{
		"GET /v2/../../../etc/passwd HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
		"GET /v2/a/blobs/../../../../etc/passwd HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
		"GET http://169.254.169.254/v2/a/../b/manifests/1 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
		"GET /v2/a/manifests/1\x00 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
		"GET /v2/" + strings.Repeat("a/", 1<<20) + " HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
	} {
		conn, err := net.Dial("tcp", m.server.Listener.Addr().String()) //nolint:noctx // a raw socket, closed below
		if err != nil {
			t.Fatal(err)
		}
		_, _ = conn.Write([]byte(raw)) // the server may close the connection first
		answer := make([]byte, 12)
		if _, err := conn.Read(answer); err != nil || !strings.HasPrefix(string(answer), "HTTP/1.1 4") {
			t.Errorf("%.60q: %q, %v", raw, answer, err)
		}
		_ = conn.Close()
	}
	up.WantCounts(t, nil)
}

// TestErrorsToClients is the table of docs/architecture.md, with nothing stored.
func TestErrorsToClients(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		fault  ut.Fault
		status int
		code   string // "": the kind's own code for not found
	}{
		"404":           {ut.Status(404), 404, ""},
		"401":           {ut.Status(401), 404, ""},
		"403":           {ut.StatusError(403, "DENIED", "no"), 404, ""},
		"429":           {ut.Status(429, "Retry-After", "17"), 503, "TOOMANYREQUESTS"},
		"429 bare":      {ut.Status(429), 503, "TOOMANYREQUESTS"},
		"500":           {ut.Status(500), 502, "UNAVAILABLE"},
		"503":           {ut.Status(503), 502, "UNAVAILABLE"},
		"503 that says": {ut.Status(503, "Retry-After", "600"), 502, "UNAVAILABLE"},
		"redirect loop": {ut.RedirectLoop(), 502, "UNAVAILABLE"},
		"teapot":        {ut.Status(418), 502, "UNAVAILABLE"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			up := ut.New(t, ut.Options{})
			img := up.AddImage("library/app", "1", ut.NewImage(1, 10))
			up.Fault(ut.Match{AnyAuth: true}, tc.fault)
			m := newMirror(t, nil, registry(t, "docker.io", up.URL))
			for path, own := range map[string]string{
				"/v2/library/app/manifests/1":                            "MANIFEST_UNKNOWN",
				"/v2/library/app/manifests/" + img.Index.Digest.String(): "MANIFEST_UNKNOWN",
				"/v2/library/app/blobs/" + img.Layers[0].Digest.String(): "BLOB_UNKNOWN",
				"/v2/library/app/tags/list":                              "NAME_UNKNOWN",
			} {
				code := tc.code
				if code == "" {
					code = own
				}
				a := m.get(path)
				m.wantError(a, tc.status, code)
				retry := a.header.Get("Retry-After")
				least, most := 0, 0 // seconds
				switch name {
				case "429":
					least, most = 1, 17
				case "429 bare": // a second at first, then longer
					least, most = 1, 60
				case "503 that says": // five minutes of the upstream's ten
					least, most = 290, 300
				}
				if after, err := strconv.Atoi(retry); most > 0 && err != nil || after < least || most > 0 && after > most {
					t.Errorf("Retry-After %q", retry)
				}
				if h := m.head(path); h.status != tc.status || len(h.body) > 0 || h.header.Get("WWW-Authenticate") != "" {
					t.Errorf("HEAD %s: %d %v", path, h.status, h.header)
				}
			}
			kept(t, m)
		})
	}
}

// TestHostileUpstream: what an upstream sends costs bounded memory and time.
func TestHostileUpstream(t *testing.T) {
	t.Parallel()
	for name, script := range map[string]func(up *ut.Registry){
		"huge manifest": func(up *ut.Registry) { up.Fault(ut.Match{Op: ut.GetManifest}, ut.Huge(50<<20)) },
		"endless":       func(up *ut.Registry) { up.Fault(ut.Match{Op: ut.GetManifest}, ut.Endless()) },
		"endless token": func(up *ut.Registry) { up.Fault(ut.Match{Op: ut.Token}, ut.Endless()) },
		"redirects":     func(up *ut.Registry) { up.Fault(ut.Match{Op: ut.GetManifest}, ut.RedirectEndless()) },
		"to a file":     func(up *ut.Registry) { up.Fault(ut.Match{Op: ut.GetManifest}, ut.Redirect("file:///etc/passwd")) },
		"to nowhere":    func(up *ut.Registry) { up.Fault(ut.Match{Op: ut.GetManifest}, ut.Redirect("")) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			up := ut.New(t, ut.Options{Auth: ut.Bearer})
			img := up.AddImage("library/app", "1", ut.NewImage(1, 10))
			script(up)
			metrics := upstream.NewMetrics()
			hub, err := upstream.New(upstream.Config{Name: "docker.io", URLs: []string{up.URL}}, metrics, slog.New(slog.DiscardHandler))
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(hub.Close)
			m := newMirror(t, nil, hub)
			a := m.get("/v2/library/app/manifests/" + img.Index.Digest.String())
			m.wantError(a, http.StatusBadGateway, "UNAVAILABLE")
			// The bytes that the mirror read, without the kernel's buffers: the bound, and
			// one more read.
			if n := fetched(t, metrics); n > upstream.MaxManifestSize+256<<10 {
				t.Errorf("read %v bytes", n)
			}
			kept(t, m)
		})
	}
}

// fetched is the sum of fetched_bytes_total over all labels.
func fetched(t *testing.T, m *upstream.Metrics) (bytes float64) {
	t.Helper()
	r := prometheus.NewRegistry()
	r.MustRegister(m)
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() != "fetched_bytes_total" {
			continue
		}
		for _, sample := range f.GetMetric() {
			bytes += sample.GetCounter().GetValue()
		}
	}
	return bytes
}

// TestNoCredentials: no response asks a client for a password, and a client's credentials
// are not sent upstream.
func TestNoCredentials(t *testing.T) {
	t.Parallel()
	up := ut.New(t, ut.Options{Auth: ut.Basic, Username: "u", Password: "p"})
	up.AddImage("library/app", "1", ut.NewImage(1, 10))
	m := newMirror(t, nil, registry(t, "docker.io", up.URL))
	const canary = "Basic Y2FuYXJ5OmNhbmFyeQ=="
	for _, path := range []string{"/v2/", "/v2/library/app/manifests/1", "/v2/library/app/tags/list"} {
		if a := m.get(path, "Authorization", canary); a.header.Get("WWW-Authenticate") != "" || a.status == http.StatusUnauthorized {
			t.Errorf("%s: %d %v", path, a.status, a.header)
		}
	}
	for _, q := range up.Requests() {
		if got := q.Header.Get("Authorization"); got == canary {
			t.Errorf("%s got the client's credential", q.Path)
		}
	}
}

func TestVersionCheck(t *testing.T) {
	t.Parallel()
	m := newMirror(t, nil, registry(t, "docker.io", "http://127.0.0.1:1"))
	for _, path := range []string{"/v2/", "/v2"} {
		if a := m.get(path); a.status != http.StatusOK || a.header.Get("Docker-Distribution-Api-Version") != "registry/2.0" {
			t.Errorf("%s: %d %v", path, a.status, a.header)
		}
	}
}
