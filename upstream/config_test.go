package upstream

import (
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cachalot-registry/cachalot/upstream/upstreamtest"
)

func TestConfigErrors(t *testing.T) {
	t.Parallel()
	const good = "https://r.test"
	empty := filepath.Join(t.TempDir(), "empty")
	if err := os.WriteFile(empty, []byte("\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		cfg  Config
		want string
	}{
		{Config{}, `upstreams: "" is not a registry name`},
		{Config{Name: "a/b", URLs: []string{good}}, `upstreams: "a/b" is not a registry name`},
		{Config{Name: "r"}, "upstreams.r.url: missing"},
		{Config{Name: "r", URLs: []string{"r.test"}}, "upstreams.r.url: not an http or https URL"},
		{Config{Name: "r", URLs: []string{good, "ftp://r.test"}}, "upstreams.r.urls[1]: not an http or https URL"},
		{Config{Name: "r", URLs: []string{"https://me:secret@r.test"}}, "upstreams.r.url: a credential in the URL; write it as username and password"},
		{Config{Name: "r", URLs: []string{"https://"}}, "upstreams.r.url: no host in the URL"},
		{Config{Name: "r", URLs: []string{"https://b\u00fccher.test"}}, "upstreams.r.url: a bad host in the URL"},
		{Config{Name: "r", URLs: []string{"https://b.test:0"}}, "upstreams.r.url: a bad host in the URL"},
		{Config{Name: "r", URLs: []string{good}, TokenRealms: []string{"*.b.test"}}, `upstreams.r.token_realms[0]: "*.b.test" is not a host`},
		{Config{Name: "r", URLs: []string{good + "?x"}}, "the URL has ? or #; write the address alone, such as https://r.test"},
		{Config{Name: "r", URLs: []string{good + "/v2/"}}, "/v2 at the end of the URL"},
		{Config{Name: "r", URLs: []string{good + "/v2/a/v2/b"}}, "/v2 at the end of the URL"},
		{Config{Name: "r", URLs: []string{good + "/a/../b"}}, "the URL has . or .. in its path"},
		{Config{Name: "r", URLs: []string{"https://r.test\x00secret"}}, "upstreams.r.url: not a URL"},
		{Config{Name: "r", URLs: []string{good}, Accounts: []Account{{Username: "a"}}}, "upstreams.r.username: without a password"},
		{Config{Name: "r", URLs: []string{good}, Accounts: []Account{{Password: "secret"}}}, "upstreams.r.username: missing"},
		{Config{Name: "r", URLs: []string{good}, Accounts: []Account{{Username: "a:b", Password: "secret"}}}, "upstreams.r.username: a colon in it"},
		{Config{Name: "r", URLs: []string{good}, Accounts: []Account{{Username: "a", Password: "secret", PasswordFile: "x"}}}, "upstreams.r.password_file: given along with password"},
		{Config{Name: "r", URLs: []string{good}, Accounts: []Account{{Username: "a", PasswordFile: "/no/such"}}}, "upstreams.r.password_file: cannot be read: no such file"},
		{Config{Name: "r", URLs: []string{good}, Accounts: []Account{{Username: "a", PasswordFile: empty}}}, "upstreams.r.password_file: " + empty + " is empty"},
		{Config{Name: "r", URLs: []string{good}, CAFile: "/no/such"}, "upstreams.r.ca_file: open /no/such"},
		{Config{Name: "r", URLs: []string{good}, CAFile: empty}, "upstreams.r.ca_file: " + empty + " has no PEM certificate"},
		{Config{Name: "r", URLs: []string{good}, TokenRealms: []string{"a.test", "https://b.test"}}, "upstreams.r.token_realms[1]: a URL; write the host alone"},
		{Config{Name: "r", URLs: []string{good}, AllowAddresses: make([]netip.Prefix, 1)}, "upstreams.r.allow_addresses[0]: not a range of addresses"},
		{Config{Name: "r", URLs: []string{good}, MaxConnections: -1}, "upstreams.r.max_connections: -1 is negative"},
		{Config{Name: "r", URLs: []string{good}, Timeouts: Timeouts{Progress: -1}}, "timeouts.progress: -1ns is negative"},
	} {
		_, err := New(tt.cfg, NewMetrics(), slog.New(slog.DiscardHandler))
		if err == nil || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "secret") {
			t.Errorf("got %v, want %s", err, tt.want)
		}
	}
}

func TestWellKnown(t *testing.T) {
	t.Parallel()
	seen := map[string]bool{}
	for _, cfg := range WellKnown() {
		r, err := New(cfg, NewMetrics(), slog.New(slog.DiscardHandler))
		if err != nil {
			t.Error(err)
			continue
		}
		if seen[r.Name()] || !strings.HasPrefix(cfg.URLs[0], "https://") {
			t.Errorf("%+v", cfg)
		}
		seen[r.Name()] = true
		r.Close()
	}
	for _, name := range []string{"docker.io", "ghcr.io", "quay.io", "gcr.io", "registry.k8s.io", "mcr.microsoft.com", "public.ecr.aws"} {
		if !seen[name] {
			t.Errorf("%s is missing", name)
		}
	}
}

// TestTransport: requests use TLS with the registry's CA, and a path before /v2. They have no
// header that could change the bytes.
func TestTransport(t *testing.T) {
	t.Parallel()
	up, img := image(t, upstreamtest.Options{TLS: true})
	if _, err := asking(t, up).Head(t.Context(), KindManifest, repo, "latest"); err == nil || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("without the CA: %v", err)
	}
	r := dialing(t, Config{URLs: []string{up.URL}, CAFile: up.CAFile})
	up.Forget()
	read(t, r, KindManifest, img.Index.Digest, 0)
	asked := up.Requests()
	if len(asked) != 2 || asked[0].Path != "/v2/" || len(asked[0].Header) != 1 || asked[0].Header.Get("User-Agent") != userAgent {
		t.Fatalf("asked %+v", asked)
	}
	q := asked[1]
	if len(q.Header) != 3 || q.Header.Get("Accept-Encoding") != "identity" || q.Header.Get("User-Agent") != userAgent || !strings.Contains(q.Header.Get("Accept"), img.Index.MediaType) {
		t.Errorf("headers %v", q.Header)
	}
	_, sent := up.Wire()
	if sent < up.SentAll() || up.SentAll() != img.Index.Size {
		t.Errorf("%d bytes sent in %d on the wire", up.SentAll(), sent)
	}
	up.Forget()
	p := dialing(t, Config{URLs: []string{up.URL + "/prefix/"}, CAFile: up.CAFile})
	if _, err := p.Head(t.Context(), KindManifest, "a", "b"); err == nil {
		t.Error("the prefix was ignored")
	}
	if asked := up.Requests(); len(asked) != 2 || asked[0].Path != "/prefix/v2/" || asked[1].Path != "/prefix/v2/a/manifests/b" {
		t.Errorf("asked %+v", asked)
	}
}

// TestProxy: HTTP_PROXY and NO_PROXY are used.
func TestProxy(t *testing.T) {
	proxy := upstreamtest.New(t, upstreamtest.Options{})
	proxy.AddImage(repo, "latest", upstreamtest.NewImage(1, 10))
	t.Setenv("HTTP_PROXY", proxy.URL)
	t.Setenv("NO_PROXY", "direct.test")
	for _, name := range []string{"http_proxy", "no_proxy", "REQUEST_METHOD"} {
		t.Setenv(name, "")
	}
	for host, want := range map[string]int{"r.test": 2, "direct.test": 0} {
		r, err := New(Config{Name: host, URLs: []string{"http://" + host}}, NewMetrics(), slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		direct := upstreamtest.New(t, upstreamtest.Options{})
		direct.AddImage(repo, "latest", upstreamtest.NewImage(1, 10))
		resolve(r, map[string]string{"direct.test:80": direct.Host()})
		proxy.Forget()
		head(t, r, repo)
		r.Close()
		if proxy.Count() != want || direct.Count() != 2-want {
			t.Errorf("%s: %d by the proxy, %d direct", host, proxy.Count(), direct.Count())
		}
	}
}

// TestHeaderTimeout: a server that accepts a connection and sends nothing is a timeout. A
// header of 1 MiB is an error.
func TestHeaderTimeout(t *testing.T) {
	t.Parallel()
	var lc net.ListenConfig
	l, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for name, tt := range map[string]struct {
		url  string
		want string
	}{
		"TLS": {"https://" + l.Addr().String(), "TLS handshake timeout"}, "HTTP": {"http://" + l.Addr().String(), "awaiting response headers"},
	} {
		r := dialing(t, Config{URLs: []string{tt.url}, Timeouts: Timeouts{Dial: never, TLSHandshake: 20 * time.Millisecond, ResponseHeader: 20 * time.Millisecond, Progress: never}})
		_, err := r.Head(t.Context(), KindManifest, repo, "latest")
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	up, _ := image(t, upstreamtest.Options{})
	up.Fault(upstreamtest.Match{Op: upstreamtest.HeadManifest}, upstreamtest.Header("X-Long", strings.Repeat("x", 1<<20)))
	if _, err := asking(t, up).Head(t.Context(), KindManifest, repo, "latest"); err == nil || statusOf(err) == http.StatusOK {
		t.Errorf("a header of 1 MiB: %v", err)
	}
}

// TestHasHost: hasHost accepts the hosts in URLs that clients accept.
func TestHasHost(t *testing.T) {
	t.Parallel()
	for raw, want := range map[string]bool{
		"https://cdn.test/a": true, "https://cdn.test:/a": true, "https://[::1]:/a": true, "https://CDN_1.test:8443/a": true,
		"https:///a": false, "https://:/a": false, "https://cdn.test:0/a": false, "https://cdn..test/a": false, "/a": false,
	} {
		u, err := url.Parse(raw)
		if err != nil {
			t.Fatal(err)
		}
		if got := hasHost(u); got != want {
			t.Errorf("%s: %t, want %t", raw, got, want)
		}
	}
}
