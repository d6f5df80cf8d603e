package upstreamtest

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
	_ "github.com/distribution/distribution/v3/registry/storage/driver/inmemory"
	_ "github.com/distribution/distribution/v3/registry/storage/driver/middleware/redirect"
	"github.com/opencontainers/go-digest"
	"github.com/sirupsen/logrus"
	"go.uber.org/goleak"
	"golang.org/x/crypto/bcrypt"
)

// DistributionOptions say how the real registry authenticates.
type DistributionOptions struct {
	Auth Auth
	// Username and Password are asked for by Basic. The token server gives those
	// who send them whatever scope they ask for, and anybody else a token to
	// pull; with Private, nobody else.
	Username, Password string
	Private            bool
	// ExpiresIn is the life of a token in seconds; 0: 300, as at Docker Hub.
	ExpiresIn int
	// CDN makes the registry redirect (307) those who may have a blob to a signed
	// URL at another origin, which refuses whoever sends it a credential.
	CDN bool
	// TokenURL and CDNURL are what clients are told, for a test that gives the
	// registry names, and passes requests on to URL and CDNURL of Distribution.
	TokenURL, CDNURL string
}

// Distribution is distribution's own registry, in memory, with a token server
// before it. Pulls are recorded; Push is not.
type Distribution struct {
	Recorder
	URL      string // http://127.0.0.1:PORT
	TokenURL string // the token realm, by default on the same host and port
	CDNURL   string // http://127.0.0.1:PORT; "" without CDN

	options DistributionOptions
	tb      TB
	app     *handlers.App
	ready   chan struct{} // closed once app is set
	server  *server
	signer  *signer // with Bearer
	cdn     *cdn    // with CDN
}

// NewDistribution starts a registry that ends with the test. Its logging, which
// is global (logrus), is silenced for the whole process.
func NewDistribution(tb TB, o DistributionOptions) *Distribution {
	tb.Helper()
	logrus.SetOutput(io.Discard)
	if o.ExpiresIn == 0 {
		o.ExpiresIn = 300
	}
	d := &Distribution{options: o, tb: tb, ready: make(chan struct{})}
	d.server = startServer(tb, http.HandlerFunc(d.serve), nil, &d.Recorder)
	d.URL = "http://" + d.server.addr
	d.TokenURL = cmp.Or(o.TokenURL, d.URL+"/token")

	config := &configuration.Configuration{
		Storage: configuration.Storage{
			"inmemory": configuration.Parameters{},
			"delete":   configuration.Parameters{"enabled": true},
			"maintenance": configuration.Parameters{
				"uploadpurging": map[any]any{"enabled": false}, // a goroutine that never ends
			},
		},
	}
	if o.CDN {
		d.cdn = newCDN(tb, &d.Recorder)
		d.CDNURL = "http://" + d.cdn.server.addr
		config.Middleware = map[string][]configuration.Middleware{"storage": {{
			Name: "redirect", Options: configuration.Parameters{"baseurl": cmp.Or(o.CDNURL, d.CDNURL)},
		}}}
	}
	config.HTTP.Secret = "secret" // of upload URLs only
	// A sparse index is legal, and mirrors must carry it.
	config.Validation.Disabled = true
	dir := tb.TempDir()
	switch o.Auth {
	case Basic:
		config.Auth = configuration.Auth{"htpasswd": {"realm": "distribution", "path": writeHtpasswd(tb, dir, o)}}
	case Bearer:
		d.signer = newSigner(tb)
		config.Auth = configuration.Auth{"token": {
			"realm": d.TokenURL, "service": tokenService, "issuer": tokenIssuer, "jwks": d.signer.writeKeys(tb, dir),
		}}
	}
	d.app = handlers.NewApp(context.Background(), config)
	close(d.ready)
	tb.Cleanup(func() {
		d.Down()
		_ = d.app.Shutdown() // nothing is kept
	})
	return d
}

func writeHtpasswd(tb TB, dir string, o DistributionOptions) string {
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

// IgnoreDistribution is for goleak: distribution's notification broadcaster
// cannot be stopped from outside, one goroutine for each registry.
func IgnoreDistribution() goleak.Option {
	return goleak.IgnoreTopFunction("github.com/docker/go-events.(*Broadcaster).run")
}

// Host is the registry's host:port.
func (d *Distribution) Host() string { return hostOf(d.URL) }

// Down refuses and breaks all connections, those of the CDN too, until Up.
func (d *Distribution) Down() {
	d.server.stop()
	if d.cdn != nil {
		d.cdn.server.stop()
	}
}

// Up listens again at the same addresses.
func (d *Distribution) Up() {
	d.server.start()
	if d.cdn != nil {
		d.cdn.server.start()
	}
}

func (d *Distribution) serve(w http.ResponseWriter, req *http.Request) {
	<-d.ready
	q := parse(req)
	token := req.URL.Path == "/token" && d.options.Auth == Bearer
	if token {
		q = newRecord(req, Token)
	}
	d.arrive(q)
	rw := &recordingWriter{ResponseWriter: w, recorder: &d.Recorder, record: q, cdn: d.cdn}
	if token {
		d.serveToken(rw, req)
		return
	}
	d.app.ServeHTTP(rw, req)
}

// recordingWriter records a status and counts a body, each piece before it can
// be read.
type recordingWriter struct {
	http.ResponseWriter
	recorder *Recorder
	record   *Request
	cdn      *cdn // signs redirects; nil: none
	status   int
	digest   digest.Digest
}

func (w *recordingWriter) WriteHeader(status int) {
	if w.status == 0 && status >= 200 {
		w.status = status
		w.recorder.answered(w.record, status)
		if (w.record.Op == GetManifest || w.record.Op == GetBlob) && status < 300 {
			w.digest = digest.Digest(w.Header().Get("Docker-Content-Digest"))
		}
		if location := w.Header().Get("Location"); w.cdn != nil && location != "" {
			w.Header().Set("Location", w.cdn.sign(location))
		}
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *recordingWriter) Write(p []byte) (int, error) {
	if w.status == 0 {
		w.WriteHeader(http.StatusOK)
	}
	w.recorder.count(w.record, w.digest, len(p))
	n, err := w.ResponseWriter.Write(p)
	w.recorder.count(w.record, w.digest, n-len(p))
	return n, err
}

func (w *recordingWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// PushImage pushes all of an image and points a tag at its index.
func (d *Distribution) PushImage(repo, tag string, i Image) Image {
	d.tb.Helper()
	d.PushBlob(repo, i.Blobs()...)
	d.PushManifest(repo, "", i.Manifest)
	d.PushManifest(repo, tag, i.Index)
	return i
}

// PushBlob pushes blobs named by their sha256.
func (d *Distribution) PushBlob(repo string, blobs ...Content) {
	d.tb.Helper()
	for _, b := range blobs {
		started := d.push(http.MethodPost, "/v2/"+repo+"/blobs/uploads/", repo, "", nil)
		u, err := url.Parse(started.Get("Location"))
		if err != nil {
			d.tb.Fatalf("push %s: %v", b.Digest, err)
			return
		}
		query := u.Query()
		query.Set("digest", b.Digest.String())
		d.push(http.MethodPut, u.Path+"?"+query.Encode(), repo, "application/octet-stream", b.Bytes)
		if d.cdn != nil {
			d.cdn.add(b)
		}
	}
}

// PushManifest pushes a manifest under a tag, or by its digest alone if that is "".
func (d *Distribution) PushManifest(repo, tag string, m Content) {
	d.tb.Helper()
	if tag == "" {
		tag = m.Digest.String()
	}
	d.push(http.MethodPut, "/v2/"+repo+"/manifests/"+tag, repo, m.MediaType, m.Bytes)
}

// push asks the registry directly, past the network and the counts.
func (d *Distribution) push(method, target, repo, contentType string, body []byte) http.Header {
	d.tb.Helper()
	req := httptest.NewRequestWithContext(context.Background(), method, target, bytes.NewReader(body))
	req.Header.Set("Content-Type", contentType)
	switch d.options.Auth {
	case Basic:
		req.SetBasicAuth(d.options.Username, d.options.Password)
	case Bearer:
		t, err := d.signer.sign(d.options.Username, 60, []access{{Type: "repository", Name: repo, Actions: []string{"pull", "push"}}})
		if err != nil {
			d.tb.Fatalf("sign a token: %v", err)
		}
		req.Header.Set("Authorization", "Bearer "+t)
	}
	rec := httptest.NewRecorder()
	d.app.ServeHTTP(rec, req)
	if rec.Code >= 300 {
		d.tb.Fatalf("push: %s %s: status %d: %s", method, target, rec.Code, rec.Body)
	}
	return rec.Header()
}
