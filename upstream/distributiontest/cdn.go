package distributiontest

import (
	"bytes"
	"crypto/rand"
	"net/http"
	"net/url"
	"path"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/cachalot-registry/cachalot/upstream/upstreamtest"
)

// cdn serves a registry's blobs at its own origin, as an object store does. It serves signed
// URLs, and refuses requests with a credential.
type cdn struct {
	recorder *upstreamtest.Recorder
	server   *upstreamtest.Server

	mu     sync.Mutex // guards the fields below
	blobs  map[digest.Digest][]byte
	signed map[string]string // path by signature
}

func newCDN(tb upstreamtest.TB, r *upstreamtest.Recorder) *cdn {
	c := &cdn{recorder: r, blobs: map[digest.Digest][]byte{}, signed: map[string]string{}}
	c.server = upstreamtest.NewServer(tb, http.HandlerFunc(c.serve), r)
	return c
}

func (c *cdn) add(blobs ...upstreamtest.Content) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, b := range blobs {
		c.blobs[b.Digest] = b.Bytes
	}
}

// sign makes a redirect's target a signed URL.
func (c *cdn) sign(location string) string {
	u, err := url.Parse(location)
	if err != nil {
		return location // distribution's URLs are valid
	}
	signature := rand.Text()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.signed[signature] = u.Path
	u.RawQuery = url.Values{"signature": {signature}}.Encode()
	return u.String()
}

// find returns the blob that a request's URL was signed for.
func (c *cdn) find(u *url.URL) (digest.Digest, []byte, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.signed[u.Query().Get("signature")] != u.Path {
		return "", nil, false
	}
	d := digest.NewDigestFromEncoded(digest.SHA256, path.Base(path.Dir(u.Path))) // .../HEX/data
	b, ok := c.blobs[d]
	return d, b, ok
}

func (c *cdn) serve(w http.ResponseWriter, req *http.Request) {
	d, blob, ok := c.find(req.URL)
	answer := c.recorder.Record(w, req, upstreamtest.CDN, d.String())
	switch {
	case req.Header.Get("Authorization") != "":
		http.Error(answer, "only one way to authenticate is allowed", http.StatusBadRequest)
	case !ok:
		http.Error(answer, "the signature is not that of this URL", http.StatusForbidden)
	default:
		answer.Digest = d
		answer.Header().Set("Content-Type", "application/octet-stream")
		http.ServeContent(answer, req, "", time.Time{}, bytes.NewReader(blob))
	}
}
