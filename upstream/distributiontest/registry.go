// Package distributiontest runs the registry of the distribution project in process, as a real
// registry for tests.
package distributiontest

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"

	"github.com/distribution/distribution/v3/configuration"
	_ "github.com/distribution/distribution/v3/registry/auth/htpasswd"
	_ "github.com/distribution/distribution/v3/registry/auth/token"
	"github.com/distribution/distribution/v3/registry/handlers"
	_ "github.com/distribution/distribution/v3/registry/storage/driver/filesystem"
	_ "github.com/distribution/distribution/v3/registry/storage/driver/middleware/redirect"
	"github.com/sirupsen/logrus"
	"go.uber.org/goleak"
	"golang.org/x/crypto/bcrypt"

	"github.com/cachalot-registry/cachalot/upstream/upstreamtest"
)

// Options say how the real registry authenticates.
type Options struct {
	Auth upstreamtest.Auth
	// Username and Password are required with Basic. The token server grants a client that
	// sends them any scope. It gives other clients a token to pull, except with Private.
	Username, Password string
	Private            bool
	// ExpiresIn is the life of a token in seconds; 0: 300, as at Docker Hub.
	ExpiresIn int
	// CDN makes the registry redirect (307) permitted requests for a blob to a signed URL at
	// another origin, which refuses requests with a credential.
	CDN bool
	// TokenURL and CDNURL are announced to clients. They are for a test that gives the registry
	// names, and forwards requests to URL and CDNURL of Registry.
	TokenURL, CDNURL string
}

// Registry is the real registry, with a token server before it. Pulls are recorded; pushes are
// not.
type Registry struct {
	upstreamtest.Recorder
	URL      string // http://127.0.0.1:PORT
	TokenURL string // the token realm, by default on the same host and port
	CDNURL   string // http://127.0.0.1:PORT; "" without CDN

	options Options
	tb      upstreamtest.TB
	app     *handlers.App
	ready   chan struct{} // closed once app is set
	server  *upstreamtest.Server
	signer  *signer // with Bearer
	cdn     *cdn    // with CDN
}

// New starts a registry that ends with the test. Its logging, which
// is global (logrus), is silenced for the whole process.
func New(tb upstreamtest.TB, o Options) *Registry {
	tb.Helper()
	logrus.SetOutput(io.Discard)
	if o.ExpiresIn == 0 {
		o.ExpiresIn = 300
	}
	r := &Registry{options: o, tb: tb, ready: make(chan struct{})}
	r.server = upstreamtest.NewServer(tb, http.HandlerFunc(r.serve), &r.Recorder)
	r.URL = "http://" + r.server.Host()
	r.TokenURL = cmp.Or(o.TokenURL, r.URL+"/token")

	dir := tb.TempDir()
	config := &configuration.Configuration{
		Storage: configuration.Storage{
			// The in-memory driver copies the whole blob at each write.
			"filesystem": configuration.Parameters{"rootdirectory": filepath.Join(dir, "registry")},
			"delete":     configuration.Parameters{"enabled": true},
			"maintenance": configuration.Parameters{
				"uploadpurging": map[any]any{"enabled": false}, // a goroutine that never ends
			},
		},
	}
	if o.CDN {
		r.cdn = newCDN(tb, &r.Recorder)
		r.CDNURL = "http://" + r.cdn.server.Host()
		config.Middleware = map[string][]configuration.Middleware{"storage": {{
			Name: "redirect", Options: configuration.Parameters{"baseurl": cmp.Or(o.CDNURL, r.CDNURL)},
		}}}
	}
	config.HTTP.Secret = "secret" // for upload URLs only
	// A sparse index is legal, and mirrors must carry it.
	config.Validation.Disabled = true
	switch o.Auth {
	case upstreamtest.Basic:
		config.Auth = configuration.Auth{"htpasswd": {"realm": "distribution", "path": writeHtpasswd(tb, dir, o)}}
	case upstreamtest.Bearer:
		r.signer = newSigner(tb)
		config.Auth = configuration.Auth{"token": {
			"realm": r.TokenURL, "service": tokenService, "issuer": tokenIssuer, "jwks": r.signer.writeKeys(tb, dir),
		}}
	}
	r.app = handlers.NewApp(context.Background(), config)
	close(r.ready)
	tb.Cleanup(func() {
		r.Down()
		_ = r.app.Shutdown() // nothing is stored
	})
	return r
}

func writeHtpasswd(tb upstreamtest.TB, dir string, o Options) string {
	tb.Helper()
	hash, err := bcrypt.GenerateFromPassword([]byte(o.Password), bcrypt.MinCost)
	if err != nil {
		tb.Fatalf("hash the password: %v", err)
	}
	file := filepath.Join(dir, "htpasswd")
	if err := os.WriteFile(file, fmt.Appendf(nil, "%s:%s\n", o.Username, hash), 0o600); err != nil {
		tb.Fatalf("write htpasswd: %v", err)
	}
	return file
}

// IgnoreBroadcaster is for goleak: distribution's notification broadcaster
// cannot be stopped from outside, one goroutine for each registry.
func IgnoreBroadcaster() goleak.Option {
	return goleak.IgnoreTopFunction("github.com/docker/go-events.(*Broadcaster).run")
}

// Host is the registry's host:port.
func (r *Registry) Host() string { return r.server.Host() }

// Down refuses and breaks all connections, those of the CDN too, until Up.
func (r *Registry) Down() {
	r.server.Down()
	if r.cdn != nil {
		r.cdn.server.Down()
	}
}

// Up listens again at the same addresses.
func (r *Registry) Up() {
	r.server.Up()
	if r.cdn != nil {
		r.cdn.server.Up()
	}
}

func (r *Registry) serve(w http.ResponseWriter, req *http.Request) {
	<-r.ready
	if req.URL.Path == "/token" && r.options.Auth == upstreamtest.Bearer {
		r.serveToken(r.Record(w, req, upstreamtest.Token, ""), req)
		return
	}
	w = r.Record(w, req, "", "")
	if r.cdn != nil {
		w = signing{w, r.cdn}
	}
	r.app.ServeHTTP(w, req)
}

// signing makes the registry's redirects signed URLs of its CDN.
type signing struct {
	http.ResponseWriter
	cdn *cdn
}

func (w signing) WriteHeader(status int) {
	if location := w.Header().Get("Location"); location != "" {
		w.Header().Set("Location", w.cdn.sign(location))
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w signing) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// PushImage pushes all of an image and points a tag at its index.
func (r *Registry) PushImage(repo, tag string, i upstreamtest.Image) upstreamtest.Image {
	r.tb.Helper()
	r.PushBlob(repo, i.Blobs()...)
	r.PushManifest(repo, "", i.Manifest)
	r.PushManifest(repo, tag, i.Index)
	return i
}

// PushBlob pushes blobs named by their sha256.
func (r *Registry) PushBlob(repo string, blobs ...upstreamtest.Content) {
	r.tb.Helper()
	for _, b := range blobs {
		started := r.push(http.MethodPost, "/v2/"+repo+"/blobs/uploads/", repo, "", nil)
		u, err := url.Parse(started.Get("Location"))
		if err != nil {
			r.tb.Fatalf("push %s: %v", b.Digest, err)
			return
		}
		query := u.Query()
		query.Set("digest", b.Digest.String())
		r.push(http.MethodPut, u.Path+"?"+query.Encode(), repo, "application/octet-stream", b.Bytes)
		if r.cdn != nil {
			r.cdn.add(b)
		}
	}
}

// PushManifest pushes a manifest under a tag, or by its digest alone if that is "".
func (r *Registry) PushManifest(repo, tag string, m upstreamtest.Content) {
	r.tb.Helper()
	if tag == "" {
		tag = m.Digest.String()
	}
	r.push(http.MethodPut, "/v2/"+repo+"/manifests/"+tag, repo, m.MediaType, m.Bytes)
}

// push calls the registry directly, without the network and the counts.
func (r *Registry) push(method, target, repo, contentType string, body []byte) http.Header {
	r.tb.Helper()
	req := httptest.NewRequestWithContext(context.Background(), method, target, bytes.NewReader(body))
	req.Header.Set("Content-Type", contentType)
	switch r.options.Auth {
	case upstreamtest.Basic:
		req.SetBasicAuth(r.options.Username, r.options.Password)
	case upstreamtest.Bearer:
		t, err := r.signer.sign(r.options.Username, 60, []access{{Type: "repository", Name: repo, Actions: []string{"pull", "push"}}})
		if err != nil {
			r.tb.Fatalf("sign a token: %v", err)
		}
		req.Header.Set("Authorization", "Bearer "+t)
	}
	rec := httptest.NewRecorder()
	r.app.ServeHTTP(rec, req)
	if rec.Code >= 300 {
		r.tb.Fatalf("push: %s %s: status %d: %s", method, target, rec.Code, rec.Body)
	}
	return rec.Header()
}
