//go:build e2e

package e2e

import (
	"fmt"
	"strings"
	"testing"

	"github.com/cachalot-registry/cachalot/upstream/upstreamtest"
)

// wire is the traffic on the upstream's sockets.
type wire struct {
	Tokens     int // requests to the token server
	Refused    int // responses with 401
	Heads      int // of manifests
	Manifests  int // sent completely
	Redirected int // blobs that are redirected to the CDN
	Blobs      int // sent completely or in part, by the CDN or the registry
	Referrers  int // through the API or the fallback tag
	Others     int
	Bytes      int64 // in manifests and blobs
}

// crossed returns the traffic since the last call.
func crossed(up *upstreamtest.Recorder) (wire, []upstreamtest.Request) {
	requests := up.Requests()
	w := wire{Bytes: up.SentAll()}
	for _, q := range requests {
		switch {
		case q.Op == upstreamtest.Token:
			w.Tokens++
		case q.Status == 401:
			w.Refused++
		case q.Op == upstreamtest.Referrers, strings.HasPrefix(q.Reference, "sha256-"):
			w.Referrers++
		case q.Op == upstreamtest.HeadManifest:
			w.Heads++
		case q.Op == upstreamtest.GetManifest:
			w.Manifests++
		case q.Op == upstreamtest.GetBlob && q.Status == 307:
			w.Redirected++
		case q.Op == upstreamtest.GetBlob, q.Op == upstreamtest.CDN && q.Status < 300:
			w.Blobs++
		default:
			w.Others++
		}
	}
	up.Forget()
	return w, requests
}

// plus adds two costs.
func (w wire) plus(v wire) wire {
	return wire{
		w.Tokens + v.Tokens, w.Refused + v.Refused, w.Heads + v.Heads, w.Manifests + v.Manifests,
		w.Redirected + v.Redirected, w.Blobs + v.Blobs, w.Referrers + v.Referrers, w.Others + v.Others, w.Bytes + v.Bytes,
	}
}

// report logs the requests of a failed test.
func report(t *testing.T, requests []upstreamtest.Request) {
	t.Helper()
	var b strings.Builder
	for _, q := range requests {
		fmt.Fprintf(&b, "\t%s %s: %d, %d bytes\n", q.Method, q.Path, q.Status, q.Sent)
	}
	t.Logf("the upstream's wire:\n%s", b.String())
}
