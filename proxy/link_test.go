package proxy

import (
	"fmt"
	"net/http"
	"testing"

	"github.com/cachalot-registry/cachalot/upstream"
	ut "github.com/cachalot-registry/cachalot/upstream/upstreamtest"
)

// TestLink_Proof: a HEAD proves a link to public content. Private content, and an unlisted
// registry, need one download first; then a HEAD is enough.
func TestLink_Proof(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		account  bool // an account fetched the content
		unlisted bool // the registry is unlisted
		has      bool // the registry has the content
		lies     bool // the registry claims to have it
		first    map[ut.Op]int
		second   map[ut.Op]int // for another repository
	}{
		"public":               {has: true, first: map[ut.Op]int{ut.HeadBlob: 1}, second: map[ut.Op]int{ut.HeadBlob: 1}},
		"public, unlisted":     {has: true, unlisted: true, first: map[ut.Op]int{ut.GetBlob: 1}, second: map[ut.Op]int{ut.HeadBlob: 1}},
		"private":              {account: true, has: true, first: map[ut.Op]int{ut.GetBlob: 1}, second: map[ut.Op]int{ut.HeadBlob: 1}},
		"private, a lie":       {account: true, lies: true, first: map[ut.Op]int{ut.GetBlob: 1}, second: map[ut.Op]int{ut.GetBlob: 1}},
		"private, no lie":      {account: true, first: map[ut.Op]int{ut.GetBlob: 1}, second: map[ut.Op]int{ut.GetBlob: 1}},
		"public, no lie":       {first: map[ut.Op]int{ut.HeadBlob: 1, ut.GetBlob: 1}, second: map[ut.Op]int{ut.HeadBlob: 1, ut.GetBlob: 1}}, // a 404 to HEAD alone proves nothing
		"public, unlisted lie": {unlisted: true, lies: true, first: map[ut.Op]int{ut.GetBlob: 1}, second: map[ut.Op]int{ut.GetBlob: 1}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var options ut.Options
			var with []func(*upstream.Config)
			if tc.account {
				options = ut.Options{Auth: ut.Basic, Username: "robot", Password: "secret"}
				with = append(with, withPassword("robot", "secret"))
			}
			origin, other := ut.New(t, options), ut.New(t, ut.Options{})
			img := origin.AddImage("team/app", "1", ut.NewImage(61, 100_000))
			layer := img.Layers[0]
			registries := []*upstream.Registry{registry(t, "docker.io", origin.URL, with...)}
			if !tc.unlisted {
				registries = append(registries, registry(t, "other.example", other.URL))
			}
			m := newMirror(t, func(c *Config) {
				c.Unlisted = func(name string) (*upstream.Registry, error) { return registry(t, name, other.URL), nil }
			}, registries...)
			m.want(m.get("/v2/team/app/blobs/"+layer.Digest.String()), layer)
			m.settle()
			repositories := []string{"x/a", "x/b"}
			for _, repo := range repositories {
				if tc.has {
					other.AddBlob(repo, layer)
				}
			}
			if tc.lies {
				other.Fault(ut.Match{Op: ut.HeadBlob}, ut.Body("", layer.Bytes))
			}
			for i, repo := range repositories {
				for range 2 { // the second request uses the link or the stored 404
					a := m.get("/v2/other.example/" + repo + "/blobs/" + layer.Digest.String())
					if tc.has {
						m.want(a, layer)
					} else {
						m.wantError(a, http.StatusNotFound, "BLOB_UNKNOWN")
					}
				}
				other.WantCounts(t, []map[ut.Op]int{tc.first, tc.second}[i])
				other.Forget()
			}
		})
	}
}

// TestLink_OwnBytes: a client's own registry sends garbage slowly under the digests of
// another registry's tag. That tag still moves, and its clients get the right bytes.
func TestLink_OwnBytes(t *testing.T) {
	t.Parallel()
	hub, stranger := ut.New(t, ut.Options{}), ut.New(t, ut.Options{})
	old, moved := hub.AddImage("team/app", "1", ut.NewImage(62, 1000)), ut.NewImage(63, 100_000)
	m := newMirror(t, func(c *Config) {
		c.FreshFor = 0
		c.Unlisted = func(name string) (*upstream.Registry, error) { return registry(t, name, stranger.URL), nil }
	}, registry(t, "docker.io", hub.URL))
	m.want(m.get("/v2/team/app/manifests/1"), old.Index)
	hold := make(chan struct{})
	defer close(hold)
	var waiting []chan reply
	for _, path := range []string{"/manifests/" + moved.Index.Digest.String(), "/blobs/" + moved.Layers[0].Digest.String()} {
		arrived := make(chan struct{})
		stranger.Fault(ut.Match{Reference: path[len(path)-71:]}, ut.Body("text/html", make([]byte, 100_000)), ut.Arrived(arrived), ut.Pause(hold))
		done := make(chan reply, 1)
		go func() { done <- m.get("/v2/evil.example/a/b" + path) }()
		<-arrived
		waiting = append(waiting, done)
	}
	hub.AddImage("team/app", "1", moved)
	a := m.get("/v2/team/app/manifests/1")
	m.want(a, moved.Index)
	if got := a.header.Get("Content-Type"); got != moved.Index.MediaType {
		t.Errorf("media type %q", got)
	}
	m.want(m.get("/v2/team/app/blobs/"+moved.Layers[0].Digest.String()), moved.Layers[0])
	for _, done := range waiting {
		if len(done) > 0 {
			t.Error("the stranger has answered")
		}
	}
}

// TestLink_ManyRepositories: a blob is served in any number of repositories and downloaded once,
// whether or not the index has room for the links.
func TestLink_ManyRepositories(t *testing.T) {
	t.Parallel()
	const places, room = 300, 60
	up := ut.New(t, ut.Options{})
	layer := ut.NewContent("", ut.Random(1, 1000))
	m := &mirror{t: t, dir: t.TempDir(), maxIndex: room * 85} // a record takes 79 to 85 bytes
	t.Cleanup(func() { m.stop() })
	m.start(nil, registry(t, "docker.io", up.URL))
	path := func(n int) string { return fmt.Sprintf("/v2/app/r%d/blobs/%s", n, layer.Digest) }
	for n := range places {
		up.AddBlob(fmt.Sprint("app/r", n), layer)
		m.want(m.get(path(n)), layer)
	}
	up.WantCounts(t, map[ut.Op]int{ut.GetBlob: 1, ut.HeadBlob: places - 1})
}
