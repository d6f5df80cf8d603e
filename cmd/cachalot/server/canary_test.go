package server

import (
	"bufio"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/cachalot-registry/cachalot/cmd/cachalot/config"
	"github.com/cachalot-registry/cachalot/upstream/upstreamtest"
)

// canaries are secrets that must not be in any output.
type canaries struct {
	mu    sync.Mutex        // guards where
	where map[string]string // what each secret is, by its text: plain, in a query, in base64
}

// new returns a secret.
func (c *canaries) new(what string) string {
	s := "canary-" + strings.ReplaceAll(what, " ", "-") + "-end"
	c.add(s, what)
	return s
}

func (c *canaries) add(secret, what string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.where == nil {
		c.where = map[string]string{}
	}
	for _, form := range []string{secret, url.QueryEscape(secret), base64.StdEncoding.EncodeToString([]byte(secret))} {
		c.where[form] = what
	}
}

// shown adds the secrets in a request's header: tokens from upstreams, and passwords in base64.
func (c *canaries) shown(h http.Header) {
	if _, secret, ok := strings.Cut(h.Get("Authorization"), " "); ok {
		c.add(secret, "an Authorization")
	}
}

// check fails the test for each secret in the text.
func (c *canaries) check(t *testing.T, from, text string) {
	t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	for form, what := range c.where {
		if i := strings.Index(text, form); i >= 0 {
			t.Errorf("%s: %s comes out: ...%s...", from, what, text[max(i-200, 0):min(i+len(form)+50, len(text))])
		}
	}
}

// babbler is a registry whose responses are not HTTP and repeat the request.
func babbler(t *testing.T, c *canaries) string {
	t.Helper()
	var lc net.ListenConfig
	l, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	t.Cleanup(func() {
		l.Close()
		serving.Wait()
	})
	serving.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			serving.Go(func() {
				defer conn.Close()
				req, err := http.ReadRequest(bufio.NewReader(conn))
				if err != nil {
					return
				}
				c.shown(req.Header)
				secret := req.Header.Get("Authorization")
				answer := "HTTP/1.1 401 no\r\nWww-Authenticate: Basic realm=\"x\"\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
				switch {
				case secret == "":
				case strings.Contains(req.URL.Path, "header"):
					answer = "HTTP/1.1 200 OK\r\nno header " + secret + "\r\n\r\n"
				case strings.Contains(req.URL.Path, "length"):
					answer = "HTTP/1.1 200 OK\r\nContent-Length: " + secret + "\r\n\r\n"
				case strings.Contains(req.URL.Path, "encoding"):
					answer = "HTTP/1.1 200 OK\r\nTransfer-Encoding: " + secret + "\r\n\r\n"
				case strings.Contains(req.URL.Path, "content"):
					answer = "HTTP/1.1 200 OK\r\nContent-Encoding: x\r\nContent-Length: 0\r\n\r\n"
				default:
					answer = secret + "\r\n\r\n"
				}
				_, _ = fmt.Fprint(conn, answer) // the client may be gone
			})
		}
	})
	return "http://" + l.Addr().String()
}

// No secret is in the log at debug level, in a response or in a metric, whatever succeeds or fails.
func TestSecretsStaySecret(t *testing.T) {
	t.Parallel()
	for _, format := range []string{"text", "json"} {
		t.Run(format, func(t *testing.T) {
			t.Parallel()
			secretsStaySecret(t, format)
		})
	}
}

// account is one way of an upstream to authenticate, and of a configuration to set it up.
type account struct {
	name    string
	secret  string
	options upstreamtest.Options
	keys    func(up *upstreamtest.Registry) string // of its configuration
}

// trouble is a fault of a registry, or of its CDN, at one request.
type trouble struct {
	what  string
	cdn   bool
	fault upstreamtest.Fault // zero: none
	down  bool
}

func troubles(c *canaries, own string) []trouble {
	away := func(what string) string { return "user=" + c.new(what) }
	all := []trouble{{what: "nothing"}, {what: "down", down: true}}
	for what, fault := range map[string]upstreamtest.Fault{
		"a status that repeats":    upstreamtest.StatusError(http.StatusForbidden, own, "no such password: "+own),
		"an error that repeats":    upstreamtest.StatusError(http.StatusInternalServerError, "UNKNOWN", "failed with "+own+"."),
		"too many":                 upstreamtest.Status(http.StatusTooManyRequests, "Retry-After", "0"),
		"a user in a location":     upstreamtest.Redirect("http://bob:" + c.new("user of a location") + "@127.0.0.1:1/?" + away("query beside a user")),
		"a port that is closed":    upstreamtest.Redirect("http://127.0.0.1:1/x?" + away("query of a closed port")),
		"a host that is none":      upstreamtest.Redirect("http://nowhere.invalid/x?" + away("query of no host")),
		"an address within":        upstreamtest.Redirect("http://169.254.169.254/x?" + away("query of a forbidden address")),
		"TLS where there is none":  upstreamtest.Redirect("https://127.0.0.1:2/x?" + away("query without TLS")),
		"another scheme":           upstreamtest.Redirect("ftp://127.0.0.1/x?" + away("query of another scheme")),
		"no URL":                   upstreamtest.Redirect("http://127.0.0.1:port/%zz?" + away("query of no URL")),
		"a loop":                   upstreamtest.RedirectLoop(),
		"a realm with a user":      challenge("http://bob:" + c.new("user of a realm") + "@127.0.0.1:1/token"),
		"a realm on a closed port": challenge("http://127.0.0.1:1/token?key=" + c.new("query of a realm")),
		"a realm that is no URL":   challenge("http://" + c.new("realm") + ":port/"),
	} {
		all = append(all, trouble{what: what, fault: fault})
	}
	for what, fault := range map[string]upstreamtest.Fault{
		"cut":     upstreamtest.CutAfter(1000),
		"wrong":   upstreamtest.WrongBytes(),
		"forgets": upstreamtest.Status(http.StatusNotFound),
		"repeats": upstreamtest.StatusError(http.StatusBadRequest, "canary-signature", "the URL http://cdn/signed/x?signature=canary-signature is bad"),
		"broken":  upstreamtest.StatusError(http.StatusBadGateway, "UNKNOWN", "no answer to /signed/x?signature=canary-signature"),
		"shorter": upstreamtest.ChangedLength(-10),
		"gzip":    upstreamtest.Gzip(),
		"onwards": upstreamtest.RedirectLoop(),
	} {
		all = append(all, trouble{what: "its CDN: " + what, cdn: true, fault: fault})
	}
	return all
}

// troubled has its own upstream for each trouble, because an open breaker hides further faults.
type troubled struct {
	trouble
	name string
	up   *upstreamtest.Registry
	blob string
}

const troubledRepo = "team/app"

func newTroubled(t *testing.T, name string, seed uint64, o upstreamtest.Options, what trouble) *troubled {
	t.Helper()
	u := &troubled{trouble: what, name: name, up: upstreamtest.New(t, o)}
	img := u.up.AddImage(troubledRepo, "latest", upstreamtest.NewImage(seed, 100_000))
	u.blob = img.Layers[0].Digest.String()
	return u
}

// ask sends requests for everything, and checks that the trouble occurs.
func (u *troubled) ask(t *testing.T, c *canaries, get func(path string)) {
	t.Helper()
	// Faults repeat the credential, so the registry gets it before the first fault, also if
	// its ping timed out.
	get(troubledRepo + "/manifests/first")
	if !u.wasShown() {
		t.Errorf("%s is shown no credential, so nothing is tested", u.name)
	}
	m := upstreamtest.Match{Repo: troubledRepo, AnyAuth: true}
	if u.cdn {
		m = upstreamtest.Match{Op: upstreamtest.CDN, Reference: u.blob, Times: 10} // bounded, because the mirror tries for 15 s to resume a cut body
	}
	var scripted *upstreamtest.Scripted
	switch {
	case u.fault != nil:
		scripted = u.up.Fault(m, u.fault)
	case u.down:
		get(troubledRepo + "/manifests/latest")
		u.up.Down()
	}
	get(troubledRepo + "/blobs/" + u.blob)
	get(troubledRepo + "/manifests/latest")
	get(troubledRepo + "/manifests/other")
	get(troubledRepo + "/tags/list")
	if scripted != nil && scripted.Applied() == 0 {
		t.Errorf("%s %s: it was not asked", u.name, u.what)
	}
	for _, q := range u.up.Requests() {
		c.shown(q.Header)
	}
	if u.fault != nil || u.down {
		return
	}
	for _, q := range u.up.Select(upstreamtest.Match{Op: upstreamtest.GetBlob}) {
		if q.Status == http.StatusTemporaryRedirect && q.Header.Get("Authorization") == "" {
			t.Errorf("%s shows no credential, so nothing is tested", u.name)
		}
	}
	if u.up.Count(upstreamtest.CDN) == 0 {
		t.Errorf("%s: nothing came from the CDN", u.name)
	}
}

// wasShown reports whether its registry got a credential.
func (u *troubled) wasShown() bool {
	return slices.ContainsFunc(u.up.Requests(), func(q upstreamtest.Request) bool { return q.Header.Get("Authorization") != "" })
}

func secretsStaySecret(t *testing.T, format string) {
	t.Helper()
	c := &canaries{}
	c.add("canary-signature", "the query of a signed URL")
	c.add("/signed/", "the path of a signed URL")
	dir := t.TempDir()
	write := func(name, text string) string {
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return file
	}
	password, fromFile, inDocker, refresh := c.new("password"), c.new("password file"), c.new("docker config"), c.new("identity token")
	passwordFile, dockerConfig := write("password", fromFile+"\n"), filepath.Join(dir, "config.json")
	auths := map[string]map[string]string{} // of the docker config
	inDockerConfig := func(up *upstreamtest.Registry, auth, identity string) string {
		auth = base64.StdEncoding.EncodeToString([]byte(auth))
		c.add(auth, "an auth of a docker config")
		auths[up.Host()] = map[string]string{"auth": auth, "identitytoken": identity}
		return "docker_config: " + dockerConfig
	}
	var all []*troubled
	config := ""
	for _, a := range []account{
		{"basic", password, upstreamtest.Options{Auth: upstreamtest.Basic, Username: "bob", Password: password}, func(*upstreamtest.Registry) string {
			return "username: bob, password: " + password
		}},
		{"bearer", fromFile, upstreamtest.Options{Auth: upstreamtest.Bearer, Username: "bob", Password: fromFile, TokenElsewhere: true}, func(up *upstreamtest.Registry) string {
			return fmt.Sprintf("username: bob, password_file: %s, token_realms: [%q]", passwordFile, up.TokenHost())
		}},
		{"docker", inDocker, upstreamtest.Options{Auth: upstreamtest.Bearer, Username: "bob", Password: inDocker}, func(up *upstreamtest.Registry) string {
			return inDockerConfig(up, "bob:"+inDocker, "")
		}},
		{"identity", refresh, upstreamtest.Options{Auth: upstreamtest.Bearer, RefreshToken: refresh}, func(up *upstreamtest.Registry) string {
			return inDockerConfig(up, "bob:", refresh)
		}},
	} {
		a.options.CDN = true
		for i, what := range troubles(c, a.secret) {
			u := newTroubled(t, fmt.Sprintf("%s-%d.test", a.name, i), uint64(len(all)), a.options, what)
			all = append(all, u)
			config += fmt.Sprintf("  %s: {url: %s, %s}\n", u.name, u.up.URL, a.keys(u.up))
		}
	}
	b, err := json.Marshal(map[string]any{"auths": auths})
	if err != nil {
		t.Fatal(err)
	}
	write("config.json", string(b))
	traces := newReceiver(t, nil)
	adminToken := c.new("admin token")
	r := start(t, fmt.Sprintf(`
admin: {token: %s}
log: {level: debug, format: %s}
tracing: {endpoint: %s}
default_upstream: babbler.test
upstreams:
  babbler.test: {url: %s, username: bob, password: %s}
`, adminToken, format, traces.url, babbler(t, c), c.new("babbled password"))+config)

	clients := []string{
		"Authorization", "Bearer " + c.new("client token"), "Proxy-Authorization", "Basic " + c.new("client proxy"), "Cookie", "session=" + c.new("cookie"),
		"Baggage", "user=" + c.new("baggage"), "Tracestate", "vendor=" + c.new("tracestate"), "X-Api-Key", c.new("api key"),
		"Referer", "http://elsewhere/?" + c.new("referer"), "X-Request-Id", c.new("request id") + " !", "Traceparent", c.new("traceparent"),
	}
	query := "&token=" + c.new("query of a client")
	var asked atomic.Int64
	asks := func(name, path string) {
		asked.Add(1)
		status, body, header := r.ask(t, r.url+"/v2/"+path+"?ns="+name+query, clients...)
		c.check(t, "the answer to "+path, fmt.Sprint(status, string(body), header))
	}

	var wg sync.WaitGroup
	for _, u := range all {
		wg.Go(func() { u.ask(t, c, func(path string) { asks(u.name, path) }) })
	}
	wg.Wait()
	for _, what := range []string{"status", "header", "length", "encoding", "content"} {
		asks("babbler.test", "team/"+what+"/manifests/latest")
	}
	for _, shown := range []string{"Bearer " + adminToken, "Bearer " + c.new("wrong admin token"), "Basic " + adminToken} {
		for _, path := range []string{"stats", "upstreams", "pins?match=" + url.QueryEscape("team/**")} {
			req, err := http.NewRequestWithContext(t.Context(), http.MethodDelete, r.admin+"/api/v1/"+path, nil)
			if err != nil {
				t.Fatal(err)
			}
			if !strings.HasPrefix(path, "pins") {
				req.Method = http.MethodGet
			}
			req.Header.Set("Authorization", shown)
			resp, err := r.client.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			body, err := io.ReadAll(resp.Body)
			_ = resp.Body.Close()
			if err != nil || resp.StatusCode >= http.StatusInternalServerError {
				t.Errorf("%s: %s %v", path, resp.Status, err)
			}
			c.check(t, path, fmt.Sprint(string(body), resp.Header))
		}
	}
	_, text := r.read(t, r.admin+"/metrics")
	c.check(t, "the metrics", text)
	r.interrupt(t)
	c.check(t, "the traces", string(traces.raw))
	if len(traces.named("get_blob")) == 0 {
		t.Error("no traces")
	}
	log, _ := r.log.now()
	c.check(t, "the log", log)
	if n := strings.Count(log, "127.0.0.1") + strings.Count(log, "asked upstream"); n < int(asked.Load()) {
		t.Errorf("%d requests and hardly a line: nothing is tested", asked.Load())
	}
}

// challenge is a 401 that names a token server.
func challenge(realm string) upstreamtest.Fault {
	return upstreamtest.Status(http.StatusUnauthorized, "WWW-Authenticate", `Bearer realm="`+realm+`",service="x"`)
}

// An error about a configuration does not contain its secrets.
func TestProblemsHoldNoSecret(t *testing.T) {
	t.Parallel()
	c := &canaries{}
	secret := c.new("configured secret")
	for _, text := range []string{
		"upstreams: {docker.io: {url: 'https://bob:SECRET@registry.example'}}",
		"upstreams: {docker.io: {url: 'bob:SECRET@registry.example'}}",
		"upstreams: {docker.io: {url: 'https://bob:SECRET@registry.example/%zz'}}",
		"upstreams: {docker.io: {url: 'https://registry.example/?key=SECRET'}}",
		"upstreams: {docker.io: {urls: ['https://a.example', 'https://bob:SECRET@b.example']}}",
		"upstreams: {docker.io: {username: bob, password: [SECRET]}}",
		"upstreams: {docker.io: {username: bob, password: {SECRET: 1}}}",
		"upstreams: {docker.io: {username: bob, password: SECRET, password_file: x}}",
		"upstreams: {docker.io: {username: 'bob:x', password: SECRET}}",
		"upstreams: {docker.io: {password: SECRET}}",
		"upstreams:\n  docker.io:\n    username: bob\n    password: \"SECRET\n",
		"upstreams:\n  docker.io:\n    username: bob\n   password: SECRET\n",
		"upstreams:\n  docker.io:\n    username: bob\n    password: *SECRET\n",
		"upstreams:\n  docker.io:\n    username: bob\n    password: ${SECRET\n",
		"upstreams: {docker.io: {username: bob, passwrd: SECRET}}",
		"upstreams: {docker.io: {username: bob, password: SECRET, password: SECRET}}",
		"upstreams: {docker.io: {accounts: [{username: bob, password: SECRET}, {password: SECRET}]}}",
		"upstreams: {docker.io: {accounts: [SECRET]}}",
		"admin: {token: SECRET, token_file: x}",
		"admin: {token: 'SECRET x'}",
		"admin: {token: [SECRET]}",
	} {
		_, err := config.Parse("config.yml", []byte(strings.ReplaceAll(text, "SECRET", secret)), noVariables)
		if err == nil {
			t.Errorf("%s: accepted", text)
			continue
		}
		c.check(t, text, err.Error())
	}
}
