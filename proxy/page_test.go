package proxy

import (
	"bufio"
	"context"
	"crypto/tls"
	"html"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"

	"github.com/cachalot-registry/cachalot/proxy/clients"
	ut "github.com/cachalot-registry/cachalot/upstream/upstreamtest"
)

func TestPage(t *testing.T) {
	t.Parallel()
	up := ut.New(t, ut.Options{})
	m := newMirror(t, nil, registry(t, "docker.io", up.URL), registry(t, "quay.io", up.URL))
	get := m.do(http.MethodGet, "/")
	body := html.UnescapeString(string(get.body))
	if get.status != http.StatusOK || get.err != nil {
		t.Fatalf("%d, %v", get.status, get.err)
	}
	for _, want := range []string{m.server.URL, "docker.io", "quay.io", `"registry-mirrors": ["` + m.server.URL + `"]`, "/etc/containerd/certs.d/_default/hosts.toml"} {
		if !strings.Contains(body, want) {
			t.Errorf("the page has no %s", want)
		}
	}
	for _, c := range clients.All() {
		if !strings.Contains(body, `id="`+c.Name+`"`) {
			t.Errorf("the page has no %s", c.Name)
		}
	}
	if loads := regexp.MustCompile(`(?i)<script|<link|<img|<iframe|@import|url\(| on[a-z]+=| style=`).FindString(body); loads != "" {
		t.Errorf("the page has %q", loads)
	}
	policy := get.header.Get("Content-Security-Policy")
	if !strings.HasPrefix(policy, "default-src 'none'; style-src 'sha256-") || strings.Contains(policy, "unsafe") {
		t.Errorf("policy %q", policy)
	}
	style := regexp.MustCompile(`(?s)<style>(.*)</style>`).FindStringSubmatch(string(get.body))
	if style == nil || style[1] != pageStyle {
		t.Error("the style is not the one that the policy allows")
	}
	if get.header.Get("Content-Type") != "text/html; charset=utf-8" || get.header.Get("Cache-Control") != "no-store" || get.cache() != "" {
		t.Errorf("header %v", get.header)
	}

	head := m.do(http.MethodHead, "/")
	if head.status != http.StatusOK || len(head.body) != 0 || head.header.Get("Content-Length") != get.header.Get("Content-Length") {
		t.Errorf("HEAD: %d, %d bytes, %v", head.status, len(head.body), head.header)
	}
	m.wantError(m.do(http.MethodGet, "/favicon.ico"), http.StatusNotFound, "UNSUPPORTED")
	up.WantCounts(t, nil)
}

// If a client cannot use the mirror, the page says why.
func TestPageWithoutDockerHub(t *testing.T) {
	t.Parallel()
	up := ut.New(t, ut.Options{})
	m := newMirror(t, func(c *Config) { c.DefaultUpstream = "quay.io" }, registry(t, "quay.io", up.URL))
	body := string(m.do(http.MethodGet, "/").body)
	if !strings.Contains(body, "plugins/docker can mirror docker.io only") || strings.Contains(body, "daemon.json") {
		t.Errorf("the page:\n%s", body)
	}
}

func TestMirrorURL(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		host, forwarded string
		tls             bool
		want            string
	}{
		"name":            {host: "cachalot.example:5000", want: "http://cachalot.example:5000"},
		"default port":    {host: "cachalot.example", want: "http://cachalot.example"},
		"underscore":      {host: "my_cache:80", want: "http://my_cache:80"},
		"IPv6":            {host: "[2001:db8::1]:5000", want: "http://[2001:db8::1]:5000"},
		"TLS":             {host: "a", tls: true, want: "https://a"},
		"behind TLS":      {host: "a", forwarded: "https", want: "https://a"},
		"strange proxy":   {host: "a", forwarded: "javascript", want: "http://a"},
		"two proxies":     {host: "a", forwarded: "https, http", want: "http://a"},
		"no host":         {host: "", want: "http://192.0.2.1:5000"},
		"markup":          {host: `"><script>alert(1)</script>`, want: "http://192.0.2.1:5000"},
		"a path":          {host: "a/b", want: "http://192.0.2.1:5000"},
		"a user":          {host: "a@b", want: "http://192.0.2.1:5000"},
		"a line":          {host: "a\nb", want: "http://192.0.2.1:5000"},
		"port not such":   {host: "a:b", want: "http://192.0.2.1:5000"},
		"port too high":   {host: "a:65536", want: "http://192.0.2.1:5000"},
		"not an address":  {host: "[a]:5000", want: "http://192.0.2.1:5000"},
		"IPv6 with zone":  {host: "[fe80::1%eth0]", want: "http://192.0.2.1:5000"},
		"absurdly long":   {host: strings.Repeat("a", 300), want: "http://192.0.2.1:5000"},
		"template syntax": {host: "{{.}}", want: "http://192.0.2.1:5000"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/", http.NoBody)
			r = r.WithContext(context.WithValue(r.Context(), http.LocalAddrContextKey, &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 5000}))
			r.Host = tc.host
			if tc.tls {
				r.TLS = &tls.ConnectionState{}
			}
			r.Header.Set("X-Forwarded-Proto", tc.forwarded)
			if got := mirrorURL(r); got != tc.want {
				t.Errorf("%s, want %s", got, tc.want)
			}
		})
	}
}

// TestPageForHostileHost: the page repeats Host only if it is a valid host.
func TestPageForHostileHost(t *testing.T) {
	t.Parallel()
	up := ut.New(t, ut.Options{})
	m := newMirror(t, nil, registry(t, "docker.io", up.URL))
	for _, host := range []string{`a"onmouseover=x`, "a'b", "<b>x", "canary;rm", "$(canary)", "`canary`", "canary\\"} {
		conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", m.server.Listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		_, err = io.WriteString(conn, "GET / HTTP/1.1\r\nHost: "+host+"\r\nConnection: close\r\n\r\n")
		if err != nil {
			t.Fatal(err)
		}
		resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		conn.Close()
		if err != nil || strings.Contains(string(body), host) || strings.Contains(string(body), html.EscapeString(host)) {
			t.Errorf("%s: %v\n%s", host, err, body)
		}
		if resp.StatusCode == http.StatusOK && !strings.Contains(string(body), m.server.URL) {
			t.Errorf("%s: the page has no %s", host, m.server.URL)
		}
	}
}
