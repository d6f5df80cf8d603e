package upstream

import (
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/cachalot-registry/cachalot/upstream/upstreamtest"
)

// TestRedirectedToRegistry: a registry redirects to another one, which wants its own token, as
// lscr.io does. The mirror requests an anonymous token there, and sends none of the first one's
// credentials (L1, I5).
func TestRedirectedToRegistry(t *testing.T) {
	t.Parallel()
	for _, elsewhere := range []bool{false, true} {
		up, img := image(t, upstreamtest.Options{Auth: upstreamtest.Bearer, TokenElsewhere: elsewhere})
		vanity := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
			if _, _, ok := req.BasicAuth(); !ok {
				w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
				w.WriteHeader(http.StatusUnauthorized)
				return
			}
			http.Redirect(w, req, up.URL+req.URL.RequestURI(), http.StatusTemporaryRedirect)
		}))
		t.Cleanup(vanity.Close)
		r := dialing(t, Config{URLs: []string{vanity.URL}, Accounts: []Account{{Username: "me", Password: "canary"}}})
		res, err := r.Resolve(t.Context(), repo, "latest")
		if err != nil || res.Digest != img.Index.Digest {
			t.Errorf("%+v, %v", res, err)
		}
		read(t, r, KindManifest, img.Manifest.Digest, 0)
		read(t, r, KindBlob, img.Layers[0].Digest, 0)
		if n := up.Count(upstreamtest.Token); n != 1 {
			t.Errorf("%d tokens, want one for the repository", n)
		}
		if n := len(up.Select(upstreamtest.Match{AnyAuth: true})) - up.Count(upstreamtest.Token); n > 4 {
			t.Errorf("%d requests, want the one that is challenged more than three", n)
		}
		for _, q := range up.Requests() {
			if a := q.Header.Get("Authorization"); strings.HasPrefix(a, "Basic ") || q.User != "" {
				t.Errorf("%s got %q", q.Path, a)
			}
		}
	}
}

// TestTokenRedirects: a redirect of the token server is followed, but not with an account's
// password.
func TestTokenRedirects(t *testing.T) {
	t.Parallel()
	for _, account := range []bool{false, true} {
		up, img := image(t, upstreamtest.Options{Auth: upstreamtest.Bearer, TokenPath: "/token"})
		times := 1
		if account {
			times = 0
		}
		up.Fault(upstreamtest.Match{Op: upstreamtest.Token, Times: times}, upstreamtest.Redirect("/token?service=upstreamtest&scope=repository:"+repo+":pull&moved=1"))
		cfg := Config{URLs: []string{up.URL}}
		if account {
			cfg.Accounts = []Account{{Username: "me", Password: "canary"}}
		}
		c, err := dialing(t, cfg).Open(t.Context(), KindBlob, repo, img.Layers[0].Digest, Span{})
		if account {
			if !errors.Is(err, ErrUnavailable) {
				t.Errorf("led on with a password: %v", err)
			}
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		if n, err := io.Copy(io.Discard, c.Body); n != img.Layers[0].Size || err != nil {
			t.Error(n, err)
		}
		_ = c.Body.Close()
	}
}

// TestPrefix: the upstream's repositories are below a prefix, which clients do not see.
func TestPrefix(t *testing.T) {
	t.Parallel()
	up := upstreamtest.New(t, upstreamtest.Options{Auth: upstreamtest.Bearer, PageSize: 1})
	img := up.AddImage("dockerhub/"+repo, "latest", upstreamtest.NewImage(1, 1000))
	up.AddImage("dockerhub/"+repo, "other", upstreamtest.NewImage(2, 1000))
	r := dialing(t, Config{URLs: []string{up.URL + "/v2/dockerhub/"}})
	read(t, r, KindBlob, img.Layers[0].Digest, 0)
	if res, err := r.Resolve(t.Context(), repo, "latest"); err != nil || res.Digest != img.Index.Digest {
		t.Errorf("%+v, %v", res, err)
	}
	if tags, err := allTags(t, r, repo); err != nil || len(tags) != 2 {
		t.Errorf("%v, %v", tags, err)
	}
	if _, _, err := r.Referrers(t.Context(), repo, img.Index.Digest); err != nil {
		t.Error(err)
	}
	up.Fault(upstreamtest.Match{Op: upstreamtest.GetManifest}, upstreamtest.StatusError(404, "MANIFEST_UNKNOWN", "dockerhub/"+repo+" has no such tag"))
	_, err := r.Manifest(t.Context(), repo, "none")
	if !SaysNo(err) || strings.Contains(err.Error(), "dockerhub") || !strings.Contains(err.Error(), repo) {
		t.Error(err)
	}
	if up.Requests()[0].Path != "/v2/" || up.Count(upstreamtest.Token) != 1 {
		t.Errorf("asked %v", up.Counts())
	}
}

// TestScopeElsewhere: the scopes of a registry differ from its paths, as behind a proxy that
// rewrites them. After the first request, each costs one.
func TestScopeElsewhere(t *testing.T) {
	t.Parallel()
	up, img := image(t, upstreamtest.Options{Auth: upstreamtest.Bearer, Scope: "repository:mirror/" + repo + ":pull"})
	r := asking(t, up)
	read(t, r, KindBlob, img.Layers[0].Digest, 0)
	up.Forget()
	read(t, r, KindBlob, img.Layers[0].Digest, 0)
	read(t, r, KindManifest, img.Index.Digest, 0)
	wantCounts(t, up, map[upstreamtest.Op]int{upstreamtest.GetBlob: 1, upstreamtest.GetManifest: 1})
}

// TestRedirectedToRegistry_NoToken: if there is no token, each request asks for one once.
func TestRedirectedToRegistry_NoToken(t *testing.T) {
	t.Parallel()
	up, _ := image(t, upstreamtest.Options{Auth: upstreamtest.Bearer})
	up.Fault(upstreamtest.Match{Op: upstreamtest.Token}, upstreamtest.Body("", nil))
	vanity := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		http.Redirect(w, req, up.URL+req.URL.RequestURI(), http.StatusTemporaryRedirect)
	}))
	t.Cleanup(vanity.Close)
	r := dialing(t, Config{URLs: []string{vanity.URL}})
	const questions = 3
	for range questions {
		if _, err := r.Head(t.Context(), KindManifest, repo, "latest"); !errors.Is(err, ErrDenied) {
			t.Error(err)
		}
	}
	if n := up.Count(upstreamtest.Token); n > questions {
		t.Errorf("%d requests for a token by %d questions", n, questions)
	}
	if n := len(up.Select(upstreamtest.Match{Op: upstreamtest.HeadManifest, AnyAuth: true})); n != questions {
		t.Errorf("%d requests by %d questions", n, questions)
	}
}

// TestRedirectedToRegistry_Pages: a redirected list has all its pages.
func TestRedirectedToRegistry_Pages(t *testing.T) {
	t.Parallel()
	up, img := image(t, upstreamtest.Options{PageSize: 1})
	up.Tag(repo, "a", img.Index.Digest)
	vanity := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		http.Redirect(w, req, up.URL+req.URL.RequestURI(), http.StatusTemporaryRedirect)
	}))
	t.Cleanup(vanity.Close)
	if tags, err := allTags(t, dialing(t, Config{URLs: []string{vanity.URL}}), repo); err != nil || len(tags) != 2 {
		t.Errorf("%v, %v", tags, err)
	}
}
