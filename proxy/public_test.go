package proxy

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cachalot-registry/cachalot/storage"
	"github.com/cachalot-registry/cachalot/task"
	"github.com/cachalot-registry/cachalot/upstream"
	ut "github.com/cachalot-registry/cachalot/upstream/upstreamtest"
)

func TestPublicText(t *testing.T) {
	t.Parallel()
	secret := &os.PathError{Op: "open", Path: "/var/lib/cachalot/blobs/x", Err: os.ErrPermission}
	for _, tc := range []struct {
		err  error
		want string
	}{
		{fmt.Errorf("open blob: %w", secret), "internal error; the mirror's log says more"},
		{fmt.Errorf("write index: disk full"), "internal error; the mirror's log says more"},
		{fmt.Errorf("no progress: %w", errors.Join(upstream.ErrTimeout, secret)), upstream.ErrTimeout.Error()},
		{fmt.Errorf("%w: got sha256:x", storage.ErrDigest), storage.ErrDigest.Error()},
		{&told{is: upstream.ErrUnavailable, words: "no luck", cause: secret}, "upstream unavailable: no luck"},
		{&negative{err: fmt.Errorf("open: %w", secret)}, "internal error; the mirror's log says more (cached)"},
		{&wrongURL{storage.ErrDigest}, storage.ErrDigest.Error()},
		{&task.PanicError{Work: "request", Value: secret}, "request: internal error; the log has its stack"},
		{&refusal{detail: "no such endpoint"}, "no such endpoint"},
	} {
		if got := publicText(tc.err); got != tc.want {
			t.Errorf("%v: told %q, want %q", tc.err, got, tc.want)
		}
	}
	if e := (&told{is: upstream.ErrUnavailable, words: "no luck", cause: upstream.ErrNotFound}); errors.Is(e, upstream.ErrNotFound) || !strings.Contains(e.Error(), "not found") {
		t.Errorf("%v is what its cause is, or hides it from the log", e)
	}
}

// failures are unreachable registries, by their fault: the host and port, and what the log
// says. urls are registries that respond and lead to an unreachable host.
func failures(t *testing.T) (hosts, says, urls map[string]string, names *ut.Names) {
	t.Helper()
	listen := func(serve func(net.Conn)) string {
		l, err := net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // closed below
		if err != nil {
			t.Fatal(err)
		}
		var open sync.WaitGroup
		open.Go(func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				open.Go(func() {
					defer c.Close()
					serve(c)
				})
			}
		})
		t.Cleanup(func() {
			_ = l.Close() // nothing was written
			open.Wait()
		})
		_, port, _ := net.SplitHostPort(l.Addr().String())
		return port
	}
	wait := func(c net.Conn) { _, _ = c.Read(make([]byte, 1<<16)); _, _ = c.Read(make([]byte, 1<<16)) }
	untrusted := httptest.NewTLSServer(http.NotFoundHandler())
	t.Cleanup(untrusted.Close)
	untrusted.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, 0)
	_, untrustedPort, _ := net.SplitHostPort(untrusted.Listener.Addr().String())
	hosts = map[string]string{
		"no such name": "gone.test",
		"private":      "inside.test",
		"metadata":     "metadata.test:80",
		"refused":      "closed.test:1", // no process listens on port 1; another test may take a closed port
		"silent":       "silent.test:" + listen(wait),
		"hangs up":     "hangs.test:" + listen(func(net.Conn) {}),
		"ssh":          "ssh.test:" + listen(func(c net.Conn) { _, _ = c.Write([]byte("SSH-2.0-OpenSSH_9.9\r\n")); wait(c) }),
		"plain HTTP":   "plain.test:" + listen(func(c net.Conn) { _, _ = c.Write([]byte("HTTP/1.1 400 Bad Request\r\n\r\n")); wait(c) }),
		"untrusted":    "unknown.test:" + untrustedPort,
	}
	says = map[string]string{
		"no such name": "no such host", "private": "10.1.2.3, a private address", "metadata": "169.254.169.254, a link-local address",
		"refused": "connection refused", "silent": "TLS handshake timeout", "hangs up": "EOF|reset by peer", "ssh": "first record does not look like a TLS handshake",
		"plain HTTP": "first record does not look like a TLS handshake", "untrusted": "certificate signed by unknown authority|certificate is valid for",
	}
	answers := map[string][][]string{"inside.test": {{"10.1.2.3"}}, "metadata.test": {{"169.254.169.254"}}}
	for _, host := range hosts {
		name, _, _ := strings.Cut(host, ":")
		if name != "gone.test" && answers[name] == nil {
			answers[name] = [][]string{{"127.0.0.1"}}
		}
	}
	urls = map[string]string{}
	for _, what := range []string{"private", "refused", "silent", "ssh"} {
		host := hosts[what]
		for way, answer := range map[string]http.HandlerFunc{
			"redirect": func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path != "/v2/" {
					http.Redirect(w, r, "https://"+host+"/x", http.StatusTemporaryRedirect)
				}
			},
			"realm": func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("WWW-Authenticate", `Bearer realm="https://`+host+`/token"`)
				w.WriteHeader(http.StatusUnauthorized)
			},
		} {
			leads := httptest.NewServer(answer)
			t.Cleanup(leads.Close)
			name := fmt.Sprintf("%s-%d.test", way, len(hosts))
			hosts[what+", by "+way], says[what+", by "+way], urls[name] = name, says[what], leads.URL
		}
	}
	return hosts, says, urls, ut.NewNames(answers)
}

// journal is a log with concurrent writers.
type journal struct {
	mu  sync.Mutex // guards buf
	buf bytes.Buffer
}

func (l *journal) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(b)
}

// TestErrorTexts: an error response about an unreachable registry has no address, resolver
// or cause. For an unlisted registry it is the same for all faults. The log has the details
// under the response's request id.
func TestErrorTexts(t *testing.T) { // not parallel: the process has one resolver
	t.Setenv("NO_PROXY", "*")
	hosts, says, urls, names := failures(t)
	before := net.DefaultResolver
	net.DefaultResolver = names.Resolver()
	t.Cleanup(func() { net.DefaultResolver = before })
	quick := func(c *upstream.Config) {
		c.AllowAddresses = []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")}
		c.Timeouts.Dial, c.Timeouts.TLSHandshake, c.Timeouts.ResponseHeader = 5*time.Second, 100*time.Millisecond, 5*time.Second
	}
	d := "sha256:" + strings.Repeat("a", 64)
	paths := []string{"manifests/1", "manifests/" + d, "blobs/" + d, "tags/list", "referrers/" + d}
	requestID := regexp.MustCompile(`\(request ([0-9a-f]{32})\)`)
	private := regexp.MustCompile(`127\.0\.0\.1|10\.1\.2\.3|169\.254|dial|lookup|resolve|refused|private|loopback|x509|certificate|TLS|SSH|EOF|malformed|timeout`)

	for _, configured := range []bool{false, true} {
		log := &journal{}
		m := &mirror{t: t, dir: t.TempDir(), log: slog.NewTextHandler(log, nil)}
		registries := []*upstream.Registry{registry(t, "docker.io", "http://127.0.0.1:1")}
		unlisted := func(name string) (*upstream.Registry, error) {
			return registry(t, name, cmp.Or(urls[name], "https://"+name), quick, func(c *upstream.Config) { c.Unlisted = true }), nil
		}
		if configured {
			unlisted = nil
			for _, what := range slices.Sorted(maps.Keys(hosts)) {
				registries = append(registries, registry(t, hosts[what], cmp.Or(urls[hosts[what]], "https://"+hosts[what]), quick))
			}
		}
		m.start(func(c *Config) { c.Unlisted = unlisted }, registries...)

		var mu sync.Mutex // guards answers and ids
		answers := map[string]map[string]string{}
		ids := map[string][]string{}
		var asking sync.WaitGroup
		for what, host := range hosts {
			for _, path := range paths {
				for _, method := range []string{http.MethodGet, http.MethodHead} {
					asking.Go(func() {
						a := m.do(method, "/v2/a/b/"+path+"?ns="+host)
						id := a.header.Get("X-Request-Id")
						text := fmt.Sprintf("%d %v %s", a.status, a.err, a.body)
						if found := requestID.FindStringSubmatch(text); method == http.MethodGet && (found == nil || found[1] != id) {
							t.Errorf("%s, %s: the answer does not give the request's id %s: %s", what, path, id, text)
						}
						if private.MatchString(text) || !configured && strings.Contains(text, "allow_addresses") {
							t.Errorf("%s, %s: %s", what, path, text)
						}
						for k, v := range a.header {
							if k != "X-Request-Id" && k != "Date" && k != "Content-Length" {
								text += fmt.Sprint(" ", k, v)
							}
						}
						text = strings.ReplaceAll(requestID.ReplaceAllString(text, "(request)"), host, "HOST")
						mu.Lock()
						defer mu.Unlock()
						if answers[method+" "+path] == nil {
							answers[method+" "+path] = map[string]string{}
						}
						answers[method+" "+path][sorted(text)] = what
						ids[what] = append(ids[what], id)
					})
				}
			}
		}
		asking.Wait()
		m.stop()
		for request, different := range answers {
			if !configured && len(different) != 1 {
				t.Errorf("%s tells registries apart: %v", request, different)
			}
		}
		for what, list := range ids {
			for _, id := range list {
				line := regexp.MustCompile(`(?m)^.*msg=request.* request_id=` + id + ` .*$`).FindString(log.buf.String())
				// Under load a handshake may time out, and then the mirror stops trying.
				if !regexp.MustCompile(says[what] + "|TLS handshake timeout|not asked: it failed").MatchString(line) {
					t.Errorf("%s: the log does not say so of request %s: %s", what, id, line)
				}
			}
		}
	}
}

// sorted sorts the words of a text, because headers come in any order.
func sorted(s string) string {
	words := strings.Fields(s)
	slices.Sort(words)
	return strings.Join(words, " ")
}
