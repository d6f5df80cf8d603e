package proxy

import (
	"fmt"
	"net/http"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	ut "github.com/cachalot-registry/cachalot/upstream/upstreamtest"
)

// TestTag_OnlyOwnNotFoundRemoves: only the registry's own 404 for a tag removes it. Other
// failures, however many, remove neither the tag nor its content.
func TestTag_OnlyOwnNotFoundRemoves(t *testing.T) {
	t.Parallel()
	page := func(status int, contentType, body string) []ut.Fault {
		return []ut.Fault{ut.Body(contentType, []byte(body)), ut.StatusOf(status)}
	}
	for name, faults := range map[string][]ut.Fault{
		"a firewall's 403":          page(403, "text/html", "<html>blocked</html>"),
		"an ingress' 404":           page(404, "text/plain", "default backend - 404"),
		"a page's 404":              page(404, "text/html", "<html>not found</html>"),
		"an empty 404":              page(404, "", ""),
		"an empty 410":              page(410, "", ""),
		"a gateway's 404":           page(404, "application/json", `{"message":"no Route matched with those values"}`),
		"a login page":              page(200, "text/html", "<html>log in</html>"),
		"an error with 200":         page(200, "application/json", `{"errors":[{"code":"UNAUTHORIZED"}]}`),
		"an empty 200":              page(200, "", ""),
		"a login page's own digest": append(page(200, "text/html", "<html>log in</html>"), ut.LyingDigest(digest.FromString("<html>log in</html>"))),
		"another manifest's digest": {ut.LyingDigest(ut.NewContent("", []byte("another")).Digest)},
		"401":                       {ut.Status(401)},
		"403":                       {ut.Status(403)},
		"500":                       {ut.Status(500)},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			up := ut.New(t, ut.Options{Auth: ut.Bearer})
			img := up.AddImage("library/app", "1", ut.NewImage(1, 10))
			m := newMirror(t, due, registry(t, "docker.io", up.URL))
			m.pull("library/app", "1", img)
			fault := up.Fault(ut.Match{AnyAuth: true}, faults...)
			for range 3 {
				m.want(m.get(tagPath("1")), img.Index)
				m.want(m.get("/v2/library/app/blobs/"+img.Layers[0].Digest.String()), img.Layers[0])
			}
			fault.Remove()
			next := ut.NewImage(2, 10)
			up.AddImage("library/app", "1", next)
			waitFor(t, func() bool {
				return m.get(tagPath("1")).header.Get("Docker-Content-Digest") == next.Index.Digest.String()
			})
		})
	}
}

// TestMovedToNothing: HEAD names a digest that the registry does not serve. The mirror then
// requests the tag itself, and serves stored content if that fails too.
func TestMovedToNothing(t *testing.T) {
	t.Parallel()
	for _, status := range []int{401, 403, 404, 500} {
		for _, plain := range []bool{true, false} {
			t.Run(fmt.Sprintf("%d, the tag itself %t", status, plain), func(t *testing.T) {
				t.Parallel()
				up := ut.New(t, ut.Options{})
				old, moved := ut.NewImage(1, 10), ut.NewImage(2, 10)
				up.AddImage("library/app", "1", old)
				m := newMirror(t, due, registry(t, "docker.io", up.URL))
				m.pull("library/app", "1", old)
				up.AddImage("library/app", "1", moved)
				up.AddImage("library/app", "cold", moved)
				up.Fault(ut.Match{Op: ut.GetManifest, Reference: moved.Index.Digest.String()}, ut.Status(status))
				want := moved
				if !plain {
					up.Fault(ut.Match{Op: ut.GetManifest}, ut.Status(status))
					want = old
				}
				for range 2 {
					m.want(m.get(tagPath("1")), want.Index)
				}
				if a := m.get(tagPath("cold")); plain {
					m.want(a, moved.Index)
				} else if a.status < 400 {
					t.Errorf("%d %s", a.status, a.body)
				}
			})
		}
	}
}

// TestHangingTag: if checks of one tag hang, the other tags of its registry are still checked.
func TestHangingTag(t *testing.T) {
	t.Parallel()
	up := ut.New(t, ut.Options{})
	for _, tag := range []string{"hangs", "moves"} {
		up.AddImage("library/app", tag, ut.NewImage(1, 10))
	}
	m := newMirror(t, func(c *Config) { c.FreshFor, c.RevalidateTimeout = 0, 200*time.Millisecond }, registry(t, "docker.io", up.URL))
	for _, tag := range []string{"hangs", "moves"} {
		if a := m.get(tagPath(tag)); a.status != http.StatusOK {
			t.Fatalf("%d %s", a.status, a.body)
		}
	}
	up.Fault(ut.Match{Op: ut.HeadManifest, Reference: "hangs"}, ut.BlackHole())
	up.Fault(ut.Match{Op: ut.GetManifest, Reference: "hangs"}, ut.BlackHole())
	for seed := range uint64(5) {
		next := up.AddImage("library/app", "moves", ut.NewImage(2+seed, 10))
		waitFor(t, func() bool {
			if a := m.get(tagPath("hangs")); a.status != http.StatusOK {
				t.Fatalf("%d %s", a.status, a.body)
			}
			return m.get(tagPath("moves")).header.Get("Docker-Content-Digest") == next.Index.Digest.String()
		})
	}
}
