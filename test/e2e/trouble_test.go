//go:build e2e

package e2e

import (
	"net/http"
	"testing"

	up "github.com/cachalot-registry/cachalot/upstream/upstreamtest"
)

// trouble is a registry with a fault, and the image that clients pull from it.
type trouble struct {
	name  string
	cause func(r *up.Registry, big up.Match) // big matches the big layer; nil: the mirror does not have the registry
	kind  kind
	release
}

// kind is the part of an image that the mirror cannot serve.
type kind int

const (
	noManifest kind = iota
	noBlob
	served // nothing is missing: the mirror must serve the image
)

func (c trouble) registry() string { return c.name + ".example" }
func (c trouble) repo() string     { return "cachalot-e2e/" + c.name }

const badName = "bad-name" // the trouble with an invalid registry name

// bigLayer is the size of the layer with the fault. containerd fetches it in two ranges.
const bigLayer = rangeSize + rangeSize/4

func troubles(t *testing.T, types mediaTypes) []trouble {
	t.Helper()
	list := []trouble{
		{name: "unknown", cause: every(up.Status(http.StatusNotFound))},
		{name: "unauthorized", cause: every(up.Status(http.StatusUnauthorized))},
		{name: "denied", cause: every(up.Status(http.StatusForbidden))},
		{name: "limited", cause: every(up.Status(http.StatusTooManyRequests, "Retry-After", "30"))},
		{name: "refused", cause: func(r *up.Registry, _ up.Match) { r.Down() }},
		{name: "silent", cause: func(r *up.Registry, _ up.Match) { r.Fault(up.Match{AnyAuth: true}, up.BlackHole()) }},
		{name: "unlisted"},
		{name: badName},
		{name: "blob-unknown", kind: noBlob, cause: only(up.Status(http.StatusNotFound))},
		{name: "blob-fails", kind: noBlob, cause: only(up.Status(http.StatusInternalServerError))},
		{name: "blob-wrong", kind: noBlob, cause: only(up.WrongBytes())},
		{name: "blob-cut", kind: noBlob, cause: func(r *up.Registry, big up.Match) {
			first, later := big, big
			first.Times, later.After = 1, 1
			r.Fault(first, up.CutAfter(bigLayer/2))
			r.Fault(later, up.CutAfter(0)) // every retry fails
		}},
		{name: "blob-vanishes", kind: noBlob, cause: func(r *up.Registry, big up.Match) {
			first, later := big, big
			first.Times, later.After = 1, 1
			r.Fault(first, up.CutAfter(bigLayer/2))
			r.Fault(later, up.Status(http.StatusNotFound))
		}},
		// Clients may fail if the mirror passes these through.
		{name: "no-digest", kind: served, cause: every(up.NoDigest())},
		{name: "no-length", kind: served, cause: every(up.NoLength())},
	}
	for i := range list {
		list[i].release = assemble(t, types,
			newLayer(t, types.layer, file{"payload", 0o644, up.Random(uint64(10+i), bigLayer)}),
			newLayer(t, types.layer, busybox(t), file{"version", 0o644, []byte(list[i].name + "\n")}),
		)
	}
	return list
}

// every applies a fault to all authorized requests.
func every(f up.Fault) func(*up.Registry, up.Match) {
	return func(r *up.Registry, _ up.Match) {
		for _, op := range []up.Op{up.HeadManifest, up.GetManifest, up.HeadBlob, up.GetBlob, up.Referrers} {
			r.Fault(up.Match{Op: op}, f)
		}
	}
}

// only applies a fault to the big layer.
func only(f up.Fault) func(*up.Registry, up.Match) {
	return func(r *up.Registry, big up.Match) { r.Fault(big, f) }
}
