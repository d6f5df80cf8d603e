package upstream

import (
	"errors"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"testing"

	"github.com/cachalot-registry/cachalot/upstream/upstreamtest"
)

// TestRedirect: which redirects are followed, and which get the authorisation.
func TestRedirect(t *testing.T) {
	t.Parallel()
	const path = "/v2/library/busybox/blobs/"
	for _, tt := range []struct {
		name    string
		tls     bool
		from    string // the registry's own name
		to      string // the target's name and port
		scheme  string // of the target
		refused bool
		sent    bool // the authorisation is sent
	}{
		{name: "same origin", from: "registry.test:80", to: "registry.test:80", scheme: "http", sent: true},
		{name: "same origin, port not written", from: "registry.test:80", to: "registry.test", scheme: "http", sent: true},
		{name: "same origin, other case", from: "registry.test:80", to: "REGISTRY.test", scheme: "HTTP", sent: true},
		{name: "subdomain", from: "registry.test:80", to: "cdn.registry.test:80", scheme: "http"},
		{name: "parent domain", from: "a.registry.test:80", to: "registry.test:80", scheme: "http"},
		{name: "other port", from: "registry.test:80", to: "registry.test:81", scheme: "http"},
		{name: "other host", from: "registry.test:80", to: "cdn.test:80", scheme: "http"},
		{name: "same origin, TLS", tls: true, from: "registry.test:443", to: "registry.test", scheme: "https", sent: true},
		{name: "subdomain, TLS", tls: true, from: "registry.test:443", to: "cdn.registry.test", scheme: "https"},
		{name: "other port, TLS", tls: true, from: "registry.test:443", to: "registry.test:444", scheme: "https"},
		{name: "https to http", tls: true, from: "registry.test:443", to: "registry.test:80", scheme: "http", refused: true},
		{name: "https to http, same port", tls: true, from: "registry.test:443", to: "registry.test:443", scheme: "http", refused: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			options := upstreamtest.Options{TLS: tt.tls, Auth: upstreamtest.Basic, Username: "me", Password: "canary"}
			up, img := image(t, options)
			target := upstreamtest.New(t, upstreamtest.Options{}) // without authentication
			if tt.tls {
				target = upstreamtest.New(t, upstreamtest.Options{TLS: true})
			}
			layer := img.Layers[0]
			moved := upstreamtest.NewContent("", layer.Bytes)
			target.AddBlob(repo, moved)
			host := up.Host()
			names := map[string]string{tt.from: host}
			for _, name := range []string{"registry.test:81", "registry.test:444", "cdn.registry.test:80", "cdn.registry.test:443", "cdn.test:80", "registry.test:80"} {
				if name != tt.from {
					names[name] = target.Host()
				}
			}
			serves := target
			if tt.sent {
				serves = up
			}
			location := tt.scheme + "://" + tt.to + path + layer.Digest.String() + "?moved=1"
			up.Fault(upstreamtest.Match{Op: upstreamtest.GetBlob, Times: 1}, upstreamtest.Redirect(location))

			base := "http://" + tt.from
			cfg := Config{URLs: []string{base}, Accounts: []Account{{Username: "me", Password: "canary"}}}
			if tt.tls {
				cfg.URLs[0], cfg.CAFile = "https://"+tt.from, bundle(t, up.CAFile, target.CAFile)
			}
			r := dialing(t, cfg)
			resolve(r, names)
			head(t, r, repo) // so that the credential is sent from the start
			up.Forget()
			c, err := r.Open(t.Context(), KindBlob, repo, layer.Digest, Span{})
			if tt.refused {
				if !errors.Is(err, ErrInvalid) || up.Count()+target.Count() != 1 {
					t.Errorf("%d requests, %v", up.Count()+target.Count(), err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			c.Body.Close()
			last := serves.Requests()[serves.Count()-1]
			if last.Query.Get("moved") != "1" {
				t.Fatalf("the target was not asked: %+v", last)
			}
			if sent := last.Header.Get("Authorization") != ""; sent != tt.sent {
				t.Errorf("authorisation sent: %v, want %v", sent, tt.sent)
			}
			if last.Header.Get("Referer") != "" || last.Header.Get("Accept-Encoding") != "identity" {
				t.Errorf("headers that should not be sent: %v", last.Header)
			}
		})
	}
}

// TestRedirectAndBack: after a redirect by another origin, the authorisation is not sent, not
// even to the registry.
func TestRedirectAndBack(t *testing.T) {
	t.Parallel()
	up, img := image(t, upstreamtest.Options{Auth: upstreamtest.Basic, Username: "me", Password: "canary"})
	other := upstreamtest.New(t, upstreamtest.Options{})
	up.Fault(upstreamtest.Match{Op: upstreamtest.GetBlob}, upstreamtest.Redirect(other.URL+"/v2/x/blobs/y"))
	other.Fault(upstreamtest.Match{}, upstreamtest.Redirect(up.URL+"/v2/library/other/blobs/x"))
	r := dialing(t, Config{URLs: []string{up.URL}, Accounts: []Account{{Username: "me", Password: "canary"}}})
	if _, err := r.Open(t.Context(), KindBlob, repo, img.Config.Digest, Span{}); !errors.Is(err, ErrDenied) {
		t.Errorf("got %v", err)
	}
	for _, q := range up.Select(upstreamtest.Match{Repo: "library/other"}) {
		if q.Header.Get("Authorization") != "" {
			t.Error("the authorisation went where another origin led")
		}
	}
}

// TestExpiredURL: if a signed URL has expired, a new one is requested once.
func TestExpiredURL(t *testing.T) {
	t.Parallel()
	for _, status := range []int{401, 403, 404, 410} {
		up, img := image(t, upstreamtest.Options{CDN: true})
		s := up.Fault(upstreamtest.Match{Op: upstreamtest.CDN, Times: 1}, upstreamtest.Status(status))
		r := asking(t, up)
		read(t, r, KindBlob, img.Layers[0].Digest, 500)
		wantCounts(t, up, map[upstreamtest.Op]int{upstreamtest.GetBlob: 2, upstreamtest.CDN: 2, upstreamtest.Ping: 1})
		s.Remove()
		up.Forget()
		up.Fault(upstreamtest.Match{Op: upstreamtest.CDN}, upstreamtest.Status(status))
		if _, err := r.Open(t.Context(), KindBlob, repo, img.Layers[0].Digest, Span{}); statusOf(err) != status {
			t.Errorf("%d: %v", status, err)
		}
		wantCounts(t, up, map[upstreamtest.Op]int{upstreamtest.GetBlob: 2, upstreamtest.CDN: 2})
	}
	// A URL signed for GET refuses HEAD.
	up, img := image(t, upstreamtest.Options{})
	up.Fault(upstreamtest.Match{Op: upstreamtest.HeadBlob}, upstreamtest.RedirectToCDN())
	up.Fault(upstreamtest.Match{Op: upstreamtest.CDN}, upstreamtest.Status(403))
	if desc, err := asking(t, up).Has(t.Context(), KindBlob, repo, img.Config.Digest); err != nil || desc.Size != img.Config.Size {
		t.Errorf("got %v, %v", desc, err)
	}
}

// TestCanary: no log, no error and no request to another origin has the password or a token,
// whatever fails.
func TestCanary(t *testing.T) {
	t.Parallel()
	const password = "canary-password"
	for _, auth := range []upstreamtest.Auth{upstreamtest.Basic, upstreamtest.Bearer} {
		other := upstreamtest.New(t, upstreamtest.Options{})
		for _, c := range []struct {
			op    upstreamtest.Op
			fault func(tokens string) upstreamtest.Fault
		}{
			{upstreamtest.CDN, func(string) upstreamtest.Fault { return upstreamtest.Status(502) }},
			{upstreamtest.CDN, func(string) upstreamtest.Fault { return upstreamtest.CutAfter(0) }},
			{upstreamtest.GetBlob, func(tokens string) upstreamtest.Fault {
				return upstreamtest.StatusError(403, password, "no "+password+" "+tokens)
			}},
			{upstreamtest.GetBlob, func(tokens string) upstreamtest.Fault {
				return upstreamtest.StatusError(404, "NAME_UNKNOWN", "no "+password+" "+tokens)
			}},
			{upstreamtest.GetBlob, func(string) upstreamtest.Fault {
				return upstreamtest.StatusError(500, "", strings.Repeat("x", 250)+password)
			}},
			{upstreamtest.GetBlob, func(string) upstreamtest.Fault { return upstreamtest.Redirect(other.URL + "/v2/a/blobs/b") }},
			{upstreamtest.GetBlob, func(string) upstreamtest.Fault {
				return upstreamtest.Redirect("http://me:" + password + "@127.0.0.1/")
			}},
			{upstreamtest.GetBlob, func(string) upstreamtest.Fault {
				return upstreamtest.Redirect("ftp://" + other.Host() + "/?" + password)
			}},
			{upstreamtest.GetBlob, func(string) upstreamtest.Fault { return upstreamtest.RedirectLoop() }},
			{upstreamtest.GetBlob, func(tokens string) upstreamtest.Fault {
				return upstreamtest.StatusError(401, "UNAUTHORIZED", "who is me:"+password+" with "+tokens)
			}},
			{upstreamtest.Token, func(string) upstreamtest.Fault { return upstreamtest.StatusError(401, "", "not "+password) }},
		} {
			if c.op == upstreamtest.Token && auth != upstreamtest.Bearer {
				continue
			}
			up, img := image(t, upstreamtest.Options{Auth: auth, Username: "me", Password: password, CDN: true})
			var j journal
			r, err := New(defaults(Config{URLs: []string{up.URL}, Accounts: []Account{{Username: "me", Password: password}}}), NewMetrics(), slog.New(slog.NewTextHandler(&j, &slog.HandlerOptions{Level: slog.LevelDebug})))
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			read(t, r, KindBlob, img.Layers[0].Digest, 0)
			up.Fault(upstreamtest.Match{Op: c.op}, c.fault(strings.Join(up.Tokens(), " ")))
			if c.op == upstreamtest.Token {
				up.RevokeTokens()
			}
			age(r.endpoints[0].accounts[0], 2*youngToken) // a refused token is replaced: there are two
			content, err := r.Open(t.Context(), KindBlob, repo, img.Layers[0].Digest, Span{})
			if err == nil {
				_, err = io.ReadAll(content.Body)
				content.Body.Close()
			}
			if err == nil {
				t.Fatal("no error")
			}
			noCanary(t, "the error", err.Error())
			noCanary(t, "the log", j.String())
			for _, q := range up.Select(upstreamtest.Match{Op: upstreamtest.CDN}) {
				notAuthorized(t, q)
			}
			if up.Count(upstreamtest.CDN) == 0 {
				t.Error("the CDN was not asked")
			}
		}
		for _, q := range other.Requests() {
			notAuthorized(t, q)
		}
		if other.Count() == 0 {
			t.Error("the other origin was not asked")
		}
	}
}

// notAuthorized checks that a request to another origin has no credential.
func notAuthorized(t *testing.T, q upstreamtest.Request) {
	t.Helper()
	if q.Header.Get("Authorization") != "" {
		t.Errorf("authorisation sent to %s", q.Host)
	}
	noCanary(t, "a request to another origin", strings.Join(flat(q.Header), " "))
}

func noCanary(t *testing.T, where, s string) {
	t.Helper()
	// "bWU6Y2FuYXJ5" is how "me:canary" begins in Basic authentication.
	for _, secret := range []string{"canary", "bWU6Y2FuYXJ5"} {
		if strings.Contains(s, secret) {
			t.Errorf("%s holds a secret: %s", where, s)
		}
	}
}

func flat(h http.Header) []string {
	var all []string
	for key, values := range h {
		all = append(append(all, key), values...)
	}
	return all
}
