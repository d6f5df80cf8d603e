package upstream

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/cenkalti/backoff/v5"

	"github.com/cachalot-registry/cachalot/upstream/upstreamtest"
)

// public stands for a public address. The tests' configurations allow it, and no other.
// Connections to it are real.
const public = "127.0.0.2"

// guarded makes a registry under the egress policy. answers are what its names resolve to.
func guarded(t *testing.T, cfg Config, answers map[string][][]string) (*Registry, *journal) {
	t.Helper()
	j := &journal{}
	r, err := New(defaults(cfg), NewMetrics(), slog.New(slog.NewTextHandler(j, nil)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Close)
	r.pause = func() backoff.BackOff { return &backoff.ZeroBackOff{} }
	r.transport.Proxy = nil
	r.egress.dialer.Resolver = upstreamtest.NewNames(answers).Resolver()
	return r, j
}

// pair is two listeners on one port: a web server on the public address, and one on 127.0.0.1
// that must not be reached.
type pair struct {
	port    string
	server  *httptest.Server
	asked   atomic.Int32 // requests to the web server
	touched atomic.Int32 // connections to the other
}

func newPair(t *testing.T, serve http.HandlerFunc) *pair {
	t.Helper()
	p := &pair{}
	var open, secret net.Listener
	for secret == nil { // the port may be in use on one of them
		var lc net.ListenConfig
		l, err := lc.Listen(t.Context(), "tcp", public+":0")
		if err != nil {
			t.Fatal(err)
		}
		_, p.port, _ = net.SplitHostPort(l.Addr().String())
		if secret, err = lc.Listen(t.Context(), "tcp", "127.0.0.1:"+p.port); err != nil {
			l.Close()
			continue
		}
		open = l
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			c, err := secret.Accept()
			if err != nil {
				return
			}
			p.touched.Add(1)
			c.Close()
		}
	}()
	p.server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		p.asked.Add(1)
		w.Header().Set("Connection", "close") // so that each request makes a connection
		serve(w, req)
	}))
	p.server.Listener.Close()
	p.server.Listener = open
	p.server.Start()
	t.Cleanup(func() {
		p.server.Close()
		secret.Close()
		<-ended
	})
	return p
}

func (p *pair) config(host string) Config {
	return Config{
		Name: "registry.test", URLs: []string{"http://" + host + ":" + p.port},
		AllowAddresses: []netip.Prefix{netip.MustParsePrefix(public + "/32")},
	}
}

// manifest answers each request with a manifest.
func manifest(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/vnd.oci.image.manifest.v1+json")
	_, _ = io.WriteString(w, "{}")
}

func wantRefused(t *testing.T, err error, j *journal, want string) {
	t.Helper()
	e, ok := errors.AsType[*Error](err)
	if !ok || !errors.Is(err, ErrInvalid) || errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), want) {
		t.Errorf("got %v, want %s", err, want)
		return
	}
	// Only the log has the address and its kind.
	told := strings.TrimPrefix(e.Public(), "registry.test: "+e.Op+": invalid answer from upstream: ")
	if told != "the address is not allowed unless upstreams.registry.test.allow_addresses has it; the mirror's log says why" &&
		told != "the host is a number, not a name; the mirror's log says why" {
		t.Errorf("clients are told %q", e.Public())
	}
	if n := strings.Count(j.String(), "level=WARN msg=\"egress refused\" upstream=registry.test"); n != 1 {
		t.Errorf("%d lines in the log:\n%s", n, j)
	}
}

const allowLoopback = `, a loopback address (RFC 1122); to allow it set upstreams.registry.test.allow_addresses: ["127.0.0.1/32"]`

// TestEgressRefuses: the registry's own name, a redirect and a token realm lead to an address
// that is not public. No connection is made.
func TestEgressRefuses(t *testing.T) {
	t.Parallel()
	for target, want := range map[string]string{
		"127.0.0.1":          `127.0.0.1 is` + allowLoopback[1:],
		"[::ffff:127.0.0.1]": `::ffff:127.0.0.1 is 127.0.0.1` + allowLoopback,
		"169.254.169.254":    `169.254.169.254 is a link-local address (RFC 3927), as clouds use for metadata; to allow it set`,
		"[fe80::1]":          `fe80::1 is a link-local address (RFC 4291)`,
		"[64:ff9b::7f00:1]":  `64:ff9b::7f00:1 is the NAT64 address (RFC 6052) of 127.0.0.1, a loopback address`,
		"localhost":          `a loopback address`,
		"intern.test":        `intern.test resolves to 127.0.0.1` + allowLoopback,
		"both.test":          `both.test resolves to 10.1.2.3, a private address (RFC 1918); to allow it set upstreams.registry.test.allow_addresses: ["10.1.2.3/32"]`,
		"metadata.test":      `metadata.test resolves to fd00:ec2::254, a private address (RFC 4193)`,
		"mapped.test":        `mapped.test resolves to 127.0.0.1` + allowLoopback,
	} {
		ways := []string{"redirect", "realm"}
		if strings.HasSuffix(target, ".test") { // a literal address in its own URL is allowed
			ways = append(ways, "own URL")
		}
		for _, way := range ways {
			t.Run(way+" "+target, func(t *testing.T) {
				t.Parallel()
				var location atomic.Value
				p := newPair(t, func(w http.ResponseWriter, req *http.Request) {
					switch {
					case way == "realm":
						w.Header().Set("WWW-Authenticate", fmt.Sprintf("Bearer realm=%q", location.Load()))
						w.WriteHeader(http.StatusUnauthorized)
					case req.URL.Path != "/v2/":
						http.Redirect(w, req, location.Load().(string), http.StatusTemporaryRedirect)
					}
				})
				location.Store("http://" + target + ":" + p.port + "/token")
				host := "registry.test"
				if way == "own URL" {
					host = target
				}
				r, j := guarded(t, p.config(host), map[string][][]string{
					"registry.test": {{public}}, "intern.test": {{"127.0.0.1"}}, "both.test": {{"192.168.1.1", "fd00::1", "10.1.2.3"}},
					"metadata.test": {{"fd00:ec2::254"}}, "mapped.test": {{"::ffff:127.0.0.1"}},
				})
				_, err := r.Head(t.Context(), KindManifest, repo, "latest")
				wantRefused(t, err, j, want)
				if n := p.touched.Load(); n != 0 {
					t.Errorf("%d connections to what must not be reached", n)
				}
				if n := p.asked.Load(); way == "own URL" && n != 0 || way != "own URL" && n != 2 {
					t.Errorf("%d requests to the registry", n) // want the ping and one request
				}
			})
		}
	}
}

// TestEgressRebinding: the address of a name is checked for each connection.
func TestEgressRebinding(t *testing.T) {
	t.Parallel()
	p := newPair(t, manifest)
	r, j := guarded(t, p.config("registry.test"), map[string][][]string{"registry.test": {{public}, {public}, {"127.0.0.1"}}})
	head(t, r, repo)
	_, err := r.Head(t.Context(), KindManifest, repo, "latest")
	wantRefused(t, err, j, "registry.test resolves to 127.0.0.1"+allowLoopback)
	if p.asked.Load() != 2 || p.touched.Load() != 0 {
		t.Errorf("%d requests, %d connections to what must not be reached", p.asked.Load(), p.touched.Load())
	}
}

// TestEgressBreaker: refusals do not open the breaker.
func TestEgressBreaker(t *testing.T) {
	t.Parallel()
	p := newPair(t, manifest)
	turns := make([][]string, 0, 3*breakerFailures)
	for range cap(turns) - 1 {
		turns = append(turns, []string{"10.1.2.3"})
	}
	r, _ := guarded(t, p.config("registry.test"), map[string][][]string{"registry.test": append(turns, []string{public})})
	for range cap(turns) - 2 { // one is for the ping
		if _, err := r.Head(t.Context(), KindManifest, repo, "latest"); !errors.Is(err, ErrInvalid) {
			t.Fatal(err)
		}
	}
	head(t, r, repo)
}

// TestEgressChooses: of several addresses an allowed one is used. If its connection fails, the
// error is temporary.
func TestEgressChooses(t *testing.T) {
	t.Parallel()
	p := newPair(t, manifest)
	for _, addresses := range [][]string{{public, "127.0.0.1"}, {"127.0.0.1", public}, {"::1", public}, {"fd00::1", "10.1.2.3", public}} {
		r, j := guarded(t, p.config("registry.test"), map[string][][]string{"registry.test": {addresses}})
		head(t, r, repo)
		if j.String() != "" {
			t.Error(j)
		}
	}
	p.server.Listener.Close()
	for _, addresses := range [][]string{{public, "127.0.0.1"}, {"127.0.0.1", public}, {"::1", public}} {
		r, _ := guarded(t, p.config("registry.test"), map[string][][]string{"registry.test": {addresses}})
		if _, err := r.Head(t.Context(), KindManifest, repo, "latest"); !errors.Is(err, ErrUnavailable) {
			t.Errorf("%s: %v", addresses, err)
		}
	}
	if n := p.touched.Load(); n != 0 {
		t.Errorf("%d connections to what must not be reached", n)
	}
}

// TestEgressAllows: the addresses that the configuration allows are allowed, and no others.
func TestEgressAllows(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		urls, allow    []string
		opened, closed string
	}{
		{nil, []string{"10.1.0.0/16"}, "10.1.0.0 10.1.255.255 ::ffff:10.1.2.3", "10.0.255.255 10.2.0.0 127.0.0.1 64:ff9b::10.1.2.3 fd00::1"},
		{nil, []string{"10.1.2.3/32", "fd00:1::/32"}, "10.1.2.3 fd00:1::5 fd00:1::5%eth0", "10.1.2.2 10.1.2.4 fd00:2::"},
		{nil, []string{"fe80::1/128"}, "fe80::1 fe80::1%eth0", "fe80::2"},
		{[]string{"http://127.0.0.1:5000/a"}, nil, "127.0.0.1 ::ffff:127.0.0.1", "127.0.0.2 ::1 169.254.169.254"},
		{[]string{"https://mirror.test", "https://[::ffff:10.0.0.1]"}, nil, "10.0.0.1", "10.0.0.2"},
		{[]string{"http://[fe80::1]:80"}, nil, "fe80::1%eth0", "fe80::2%eth0"},
		{[]string{"http://LOCALHOST.:80"}, nil, "127.0.0.1 ::1", "127.0.0.2 10.0.0.1"},
		{[]string{"http://localhost.test"}, nil, "1.1.1.1", "127.0.0.1 ::1"},
	} {
		cfg := Config{Name: "registry.test", URLs: tt.urls}
		for _, s := range tt.allow {
			cfg.AllowAddresses = append(cfg.AllowAddresses, netip.MustParsePrefix(s))
		}
		e := newEgress(cfg)
		for a := range strings.FieldsSeq(tt.opened) {
			if class := e.judge("r.test", netip.MustParseAddr(a)); class != "" {
				t.Errorf("%s %s: %s is %s", tt.urls, tt.allow, a, class)
			}
		}
		for a := range strings.FieldsSeq(tt.closed) {
			if e.judge("r.test", netip.MustParseAddr(a)) == "" {
				t.Errorf("%s %s: %s is open", tt.urls, tt.allow, a)
			}
		}
	}
}

// TestEgressByProxy: the proxy may have any address. The requests to it may not name a refused
// literal address, nor a number that it could take for one.
func TestEgressByProxy(t *testing.T) {
	up, _ := image(t, upstreamtest.Options{})
	for _, name := range []string{"http_proxy", "no_proxy", "NO_PROXY", "REQUEST_METHOD"} {
		t.Setenv(name, "")
	}
	t.Setenv("HTTP_PROXY", up.URL)
	j := &journal{}
	r, err := New(defaults(Config{Name: "registry.test", URLs: []string{"http://registry.test"}}), NewMetrics(), slog.New(slog.NewTextHandler(j, nil)))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	r.egress.dialer.Resolver = upstreamtest.NewNames(nil).Resolver() // only the proxy resolves the name
	head(t, r, repo)
	up.Forget()
	for _, host := range []string{
		"10.1.2.3", "10.1.2.3.", "169.254.169.254", "[::ffff:169.254.169.254]", "[64:ff9b::a9fe:a9fe]", "[fe80::1]",
		"2130706433", "0x7f.1", "0x7F000001", "0177.0.0.1", "127.1", "a.0x", "192.168.257.",
	} {
		j.mu.Lock()
		j.buf.Reset()
		j.mu.Unlock()
		up.Forget()
		s := up.Fault(upstreamtest.Match{Op: upstreamtest.HeadManifest, Times: 1}, upstreamtest.Redirect("http://"+host+"/v2/x/manifests/y"))
		_, err := r.Head(t.Context(), KindManifest, repo, "latest")
		s.Remove()
		wantRefused(t, err, j, "")
		if up.Count() != 1 {
			t.Errorf("%s: the proxy was asked %d times", host, up.Count())
		}
	}
	// Without the proxy, the address of a host is checked as usual.
	t.Setenv("NO_PROXY", "direct.test")
	_, port, _ := net.SplitHostPort(up.Host())
	direct, err := New(defaults(Config{Name: "registry.test", URLs: []string{"http://direct.test:" + port}}), NewMetrics(), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer direct.Close()
	direct.egress.dialer.Resolver = upstreamtest.NewNames(map[string][][]string{"direct.test": {{"127.0.0.1"}}}).Resolver()
	up.Forget()
	if _, err := direct.Head(t.Context(), KindManifest, repo, "latest"); !errors.Is(err, ErrInvalid) || up.Count() != 0 {
		t.Errorf("%d requests, %v", up.Count(), err)
	}
}

// TestPrivate: only the names in the operator's configuration may have private addresses. A
// registry that a client names may not, and its errors have no address.
func TestPrivate(t *testing.T) {
	t.Parallel()
	cfg := Config{Name: "registry.corp", URLs: []string{"https://Registry.corp.:5000"}, TokenRealms: []string{"auth.corp:8443"}, Private: true}
	public := cfg
	public.Private = false
	stranger := cfg
	stranger.Unlisted = true
	for _, tc := range []struct {
		host, address       string
		own, known, unknown bool // allowed
	}{
		{"registry.corp", "10.1.2.3", true, false, false},
		{"REGISTRY.corp.", "::ffff:192.168.0.1", true, false, false},
		{"auth.corp", "172.16.0.1", true, false, false},
		{"registry.corp", "100.64.0.1", true, false, false},
		{"registry.corp", "fd00::1", true, false, false},
		{"cdn.corp", "10.1.2.3", false, false, false},
		{"registry.corp", "127.0.0.1", false, false, false},
		{"registry.corp", "169.254.169.254", false, false, false},
		{"registry.corp", "64:ff9b::a01:203", false, false, false},
		{"registry.corp", "1.1.1.1", true, true, true},
	} {
		for _, c := range []struct {
			cfg  Config
			want bool
		}{{cfg, tc.own}, {public, tc.known}, {stranger, tc.unknown}} {
			if got := newEgress(c.cfg).judge(tc.host, netip.MustParseAddr(tc.address)) == ""; got != c.want {
				t.Errorf("%s at %s, private %v, unlisted %v: allowed %v", tc.host, tc.address, c.cfg.Private, c.cfg.Unlisted, got)
			}
		}
	}

	literal := Config{Name: "127.0.0.1:1", URLs: []string{"http://127.0.0.1:1"}, Unlisted: true}
	r, err := New(literal, NewMetrics(), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Close)
	_, err = r.Head(t.Context(), KindManifest, "a/b", "1")
	e, ok := errors.AsType[*Error](err)
	if !ok || !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), "127.0.0.1 is a loopback address") {
		t.Errorf("%v", err)
	}
	if !e.Unreachable() || strings.Contains(e.Public(), "loopback") {
		t.Errorf("clients are told %q", e.Public())
	}
}
