package proxy

import (
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cachalot-registry/cachalot/storage"
	ut "github.com/cachalot-registry/cachalot/upstream/upstreamtest"
)

func TestTag_Freshness(t *testing.T) {
	t.Parallel()
	c := Config{FreshFor: time.Minute, MaxStale: time.Hour}
	now := time.Unix(1_000_000, 0)
	for name, tc := range map[string]struct {
		checked time.Time
		known   bool
		want    verdict
	}{
		"unknown":           {time.Time{}, false, expired},
		"just now":          {now, true, fresh},
		"at fresh_for":      {now.Add(-time.Minute), true, stale},
		"before fresh_for":  {now.Add(-time.Minute + 1), true, fresh},
		"before max_stale":  {now.Add(-time.Hour + 1), true, stale},
		"at max_stale":      {now.Add(-time.Hour), true, expired},
		"clock set back":    {now.Add(365 * 24 * time.Hour), true, stale},
		"clock set forward": {now.Add(-365 * 24 * time.Hour), true, expired},
	} {
		if got := c.judge(storage.Tag{Checked: tc.checked}, tc.known, c.FreshFor, now); got != tc.want {
			t.Errorf("%s: %d, want %d", name, got, tc.want)
		}
	}
}

// due makes every tag stale.
func due(c *Config) { c.FreshFor = 0 }

// impatient makes every tag stale, and waits only briefly for a check.
func impatient(c *Config) { c.FreshFor, c.RevalidateTimeout = 0, 20*time.Millisecond }

func tagPath(tag string) string { return "/v2/library/app/manifests/" + tag }

// TestOneCheckForAll: many clients wait for one HEAD.
func TestOneCheckForAll(t *testing.T) {
	t.Parallel()
	up := ut.New(t, ut.Options{})
	img := up.AddImage("library/app", "1", ut.NewImage(1, 10))
	m := newMirror(t, nil, registry(t, "docker.io", up.URL))
	m.want(m.get(tagPath("1")), img.Index)
	key := storage.TagKey{Upstream: "docker.io", Repository: "library/app", Name: "1"}
	if err := m.store.PutTag(key, storage.Tag{Digest: img.Index.Digest, Checked: time.Now().Add(-2 * time.Hour)}, time.Hour); err != nil {
		t.Fatal(err)
	}
	up.Forget()
	release, arrived := make(chan struct{}), make(chan struct{}, 100)
	up.Fault(ut.Match{Op: ut.HeadManifest}, ut.Arrived(arrived), ut.Pause(release))
	const clients = 30
	var wg sync.WaitGroup
	for range clients {
		wg.Go(func() {
			a := m.get(tagPath("1"))
			m.want(a, img.Index)
			if a.cache() != "cachalot; fwd=stale; fwd-status=304" && a.cache() != "cachalot; hit" { // a client after the check gets a hit
				t.Errorf("Cache-Status %q", a.cache())
			}
		})
	}
	<-arrived
	waitFor(t, func() bool { return m.inside.Load() == clients })
	close(release)
	wg.Wait()
	up.WantCounts(t, map[ut.Op]int{ut.HeadManifest: 1})
}

// TestUpstreamFails: if the upstream fails, in whatever way, the mirror serves stored
// content, and Cache-Status says so.
func TestUpstreamFails(t *testing.T) {
	t.Parallel()
	for name, fault := range map[string]ut.Fault{
		"500":       ut.Status(http.StatusInternalServerError),
		"503":       ut.Status(http.StatusServiceUnavailable),
		"429":       ut.Status(http.StatusTooManyRequests, "Retry-After", "600"),
		"refused":   nil,
		"when":      ut.Status(http.StatusServiceUnavailable, "Retry-After", "600"),
		"blackhole": ut.BlackHole(),
		"loop":      ut.RedirectLoop(),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			up := ut.New(t, ut.Options{})
			img := up.AddImage("library/app", "1", ut.NewImage(1, 10))
			m := newMirror(t, nil, registry(t, "docker.io", up.URL))
			m.want(m.get(tagPath("1")), img.Index)
			patience := due // the check ends with the upstream's response
			if name == "blackhole" {
				patience = impatient
			}
			m.restart(patience, registry(t, "docker.io", up.URL))
			up.Forget()
			if name == "refused" {
				up.Down()
			} else {
				up.Fault(ut.Match{Op: ut.HeadManifest}, fault)
				up.Fault(ut.Match{Op: ut.GetManifest}, fault)
			}
			for range 5 {
				a := m.get(tagPath("1"))
				m.want(a, img.Index)
				if a.cache() != "cachalot; hit; detail=stale-if-error" {
					t.Errorf("Cache-Status %q", a.cache())
				}
			}
			if name != "429" && name != "when" {
				return
			}
			a, most := m.get(tagPath("2")), 600
			if name == "429" {
				m.wantError(a, http.StatusServiceUnavailable, "TOOMANYREQUESTS")
			} else {
				most = 300 // the pause of one object is at most five minutes
				m.wantError(a, http.StatusBadGateway, "UNAVAILABLE")
			}
			if after, err := strconv.Atoi(a.header.Get("Retry-After")); err != nil || after > most || after < most-10 {
				t.Errorf("nothing kept: Retry-After %v", a.header)
			}
			// One object each; a 429 pauses all requests to the upstream.
			want := map[ut.Op]int{ut.HeadManifest: 1, ut.GetManifest: 1}
			if name == "when" {
				want = map[ut.Op]int{ut.HeadManifest: 2, ut.GetManifest: 2}
			}
			up.WantCounts(t, want)
		})
	}
}

// TestBlackHole: only the first client waits for revalidate_timeout. Then the upstream is
// suspect, and one probe at a time tests it until it responds.
func TestBlackHole(t *testing.T) {
	t.Parallel()
	up := ut.New(t, ut.Options{})
	img := up.AddImage("library/app", "1", ut.NewImage(1, 10))
	for i := range 20 {
		up.Tag("library/app", fmt.Sprint("t", i), img.Index.Digest)
	}
	m := newMirror(t, nil, registry(t, "docker.io", up.URL))
	m.want(m.get(tagPath("1")), img.Index)
	for i := range 20 {
		m.want(m.get(tagPath(fmt.Sprint("t", i))), img.Index)
	}
	m.restart(impatient, registry(t, "docker.io", up.URL))
	up.Forget()
	release := make(chan struct{})
	hole := up.Fault(ut.Match{Op: ut.HeadManifest}, ut.Pause(release))
	begun := time.Now()
	m.want(m.get(tagPath("1")), img.Index)
	if !m.proxy.suspicion.doubtsUpstream("docker.io") {
		t.Fatal("upstream not suspect after a check that took too long")
	}
	for i := range 20 {
		a := m.get(tagPath(fmt.Sprint("t", i)))
		m.want(a, img.Index)
		if a.cache() != "cachalot; hit; detail=stale-if-error" {
			t.Errorf("Cache-Status %q", a.cache())
		}
	}
	// A HEAD ends after 5 s, and on a slow machine others take the free slots.
	given := 1 + int(time.Since(begun)/(5*time.Second))
	if n := up.Count(ut.HeadManifest); n > given*(1+maxChecks) {
		t.Errorf("%d requests to a black hole, want the first and some probes", n)
	}
	hole.Remove()
	close(release)
	waitFor(t, func() bool { return !m.proxy.suspicion.doubtsUpstream("docker.io") })
}

// TestStart_UpstreamDown: the mirror starts and serves stored content while its upstream is down.
func TestStart_UpstreamDown(t *testing.T) {
	t.Parallel()
	up := ut.New(t, ut.Options{})
	img := up.AddImage("library/app", "1", ut.NewImage(1, 10))
	m := newMirror(t, nil, registry(t, "docker.io", up.URL))
	m.pull("library/app", "1", img)
	up.Down()
	m.restart(due, registry(t, "docker.io", up.URL))
	m.pull("library/app", "1", img)
	a := m.get(tagPath("unknown"))
	m.wantError(a, http.StatusBadGateway, "UNAVAILABLE")
}

// TestTagMoves: the mirror fetches the new content before it moves the tag. If that fails,
// the tag stays.
func TestTagMoves(t *testing.T) {
	t.Parallel()
	up := ut.New(t, ut.Options{})
	first := up.AddImage("library/app", "1", ut.NewImage(1, 10))
	m := newMirror(t, due, registry(t, "docker.io", up.URL))
	m.pull("library/app", "1", first)
	up.Forget()

	second := up.AddImage("library/app", "1", ut.NewImage(2, 10))
	broken := up.Fault(ut.Match{Op: ut.GetManifest, Reference: second.Index.Digest.String()}, ut.Status(http.StatusTooManyRequests))
	for range 2 {
		m.want(m.get(tagPath("1")), first.Index)
	}
	waitFor(t, func() bool { return !m.proxy.isProbing("docker.io") })
	m.restart(due, registry(t, "docker.io", up.URL))
	broken.Remove()
	up.Forget()
	a := m.get(tagPath("1"))
	m.want(a, second.Index)
	if a.cache() != "cachalot; fwd=miss; stored" && a.cache() != "cachalot; fwd=miss" {
		t.Errorf("Cache-Status %q", a.cache())
	}
	up.WantCounts(t, map[ut.Op]int{ut.HeadManifest: 1, ut.GetManifest: 1})
}

// TestTag_DeletedUpstream: a tag that is deleted upstream is removed at the next check, and the
// 404 is stored. With on_denied: follow, a refusal counts as a 404.
func TestTag_DeletedUpstream(t *testing.T) {
	t.Parallel()
	for name, fault := range map[string]ut.Fault{
		"404": ut.Status(http.StatusNotFound),
		"403": ut.Status(http.StatusForbidden),
		"401": ut.Status(http.StatusUnauthorized, "WWW-Authenticate", `Basic realm="x"`),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			up := ut.New(t, ut.Options{})
			img := up.AddImage("library/app", "1", ut.NewImage(1, 10))
			m := newMirror(t, func(c *Config) {
				due(c)
				c.Rules = []Rule{{Match: []string{"docker.io/**"}, OnDenied: follow}}
			}, registry(t, "docker.io", up.URL))
			m.want(m.get(tagPath("1")), img.Index)
			up.Fault(ut.Match{}, fault)
			up.Forget()
			a := m.get(tagPath("1"))
			m.wantError(a, http.StatusNotFound, "MANIFEST_UNKNOWN")
			n := up.Count()
			for range 5 {
				m.wantError(m.get(tagPath("1")), http.StatusNotFound, "MANIFEST_UNKNOWN")
			}
			if up.Count() != n {
				t.Errorf("asked %d times more", up.Count()-n)
			}
			if a := m.get(tagPath("1")); name == "404" && a.cache() != "cachalot; hit; detail=negative" {
				t.Errorf("Cache-Status %q", a.cache())
			}
			// Content by digest is linked to this repository, and stays.
			m.want(m.get(tagPath(img.Index.Digest.String())), img.Index)
		})
	}
}

// TestNoDigestHeader: if the upstream sends no digest or does not support HEAD, the mirror
// sends a GET and computes the digest.
func TestNoDigestHeader(t *testing.T) {
	t.Parallel()
	for name, fault := range map[string]ut.Fault{
		"no header": ut.NoDigest(), "sha384": ut.Header("Docker-Content-Digest", "sha384:"+strings.Repeat("a", 96)),
		"no HEAD": ut.Status(http.StatusMethodNotAllowed),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			up := ut.New(t, ut.Options{})
			img := up.AddImage("library/app", "1", ut.NewImage(1, 10))
			up.Fault(ut.Match{Op: ut.HeadManifest}, fault)
			if name != "sha384" {
				up.Fault(ut.Match{Op: ut.HeadBlob}, fault)
			}
			m := newMirror(t, nil, registry(t, "docker.io", up.URL))
			m.want(m.get(tagPath("1")), img.Index)
			m.want(m.get(tagPath("1")), img.Index)
			up.WantCounts(t, map[ut.Op]int{ut.HeadManifest: 1, ut.GetManifest: 1})
			layer := img.Layers[0]
			up.AddBlob("library/other", layer)
			m.want(m.get("/v2/library/app/blobs/"+layer.Digest.String()), layer)
			m.want(m.get("/v2/library/other/blobs/"+layer.Digest.String()), layer)
		})
	}
}

// TestHeadWithout: the mirror's HEAD has a length and a type even if the upstream's has
// none, because clients need them. That costs the GET that follows anyway.
func TestHeadWithout(t *testing.T) {
	t.Parallel()
	for name, faults := range map[string][2]ut.Fault{
		"no type":             {ut.Header("Content-Type", ""), nil},
		"no length":           {ut.NoLength(), nil},
		"no length of either": {ut.NoLength(), ut.NoLength()},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			up := ut.New(t, ut.Options{})
			img := up.AddImage("library/app", "1", ut.NewImage(1, 10))
			up.Fault(ut.Match{Op: ut.HeadManifest}, faults[0])
			if faults[1] != nil {
				up.Fault(ut.Match{Op: ut.GetManifest}, faults[1])
			}
			m := newMirror(t, nil, registry(t, "docker.io", up.URL))
			m.pull("library/app", "1", img)
			up.WantCounts(t, map[ut.Op]int{ut.HeadManifest: 1, ut.GetManifest: 2, ut.GetBlob: 2})
		})
	}
}

// TestLyingDigest: if HEAD names another digest, the client gets the content of that digest
// or an error, never other bytes.
func TestLyingDigest(t *testing.T) {
	t.Parallel()
	for name, content := range map[string]ut.Fault{
		"of other content":  nil,
		"of nothing":        ut.Status(http.StatusNotFound),
		"over wrong bytes":  ut.WrongBytes(),
		"over another page": ut.Body("application/vnd.oci.image.index.v1+json", []byte("{}")),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			up := ut.New(t, ut.Options{})
			up.AddImage("library/app", "1", ut.NewImage(1, 10))
			other := up.AddImage("library/app", "2", ut.NewImage(9, 10)).Index
			up.Fault(ut.Match{Op: ut.HeadManifest}, ut.LyingDigest(other.Digest))
			if content != nil {
				up.Fault(ut.Match{Op: ut.GetManifest}, content)
			}
			m := newMirror(t, nil, registry(t, "docker.io", up.URL))
			switch a := m.get(tagPath("1")); name {
			case "of other content":
				m.want(a, other)
			case "of nothing":
				m.wantError(a, http.StatusNotFound, "MANIFEST_UNKNOWN")
			default:
				m.wantError(a, http.StatusBadGateway, "UNAVAILABLE")
			}
			plain := up.Select(ut.Match{Op: ut.GetManifest, Reference: "1"})
			if want := content != nil; len(plain) != 0 != want {
				t.Errorf("the tag itself was asked for %d times", len(plain))
			}
			kept(t, m)
		})
	}
}

// TestTag_Expired: an expired tag is not served while the upstream is down.
func TestTag_Expired(t *testing.T) {
	t.Parallel()
	up := ut.New(t, ut.Options{})
	img := up.AddImage("library/app", "1", ut.NewImage(1, 10))
	m := newMirror(t, nil, registry(t, "docker.io", up.URL))
	m.want(m.get(tagPath("1")), img.Index)
	up.Down()
	m.restart(func(c *Config) { c.FreshFor, c.MaxStale = 0, time.Nanosecond }, registry(t, "docker.io", up.URL))
	m.wantError(m.get(tagPath("1")), http.StatusBadGateway, "UNAVAILABLE")
}

// TestManyTags: HEAD requests for many tags fill the index only up to its bound. A tag that
// was pulled before is still served when its registry is down.
func TestManyTags(t *testing.T) {
	t.Parallel()
	const tags, room = 600, 100
	up := ut.New(t, ut.Options{})
	img, other := up.AddImage("library/app", "1", ut.NewImage(1, 10)), up.AddImage("library/other", "1", ut.NewImage(2, 10))
	for n := range tags {
		up.Tag("library/other", fmt.Sprint("v", n), other.Index.Digest)
	}
	m := &mirror{t: t, dir: t.TempDir(), maxIndex: room * 90} // a record takes 86 to 90 bytes
	t.Cleanup(func() { m.stop() })
	m.start(nil, registry(t, "docker.io", up.URL))
	m.want(m.get(tagPath("1")), img.Index)
	m.settle() // a tag whose content is stored stays
	known := func() (n int) {
		if err := m.store.Tags(func(storage.TagKey, storage.Tag) bool { n++; return true }); err != nil {
			t.Fatal(err)
		}
		return n
	}
	for n := range tags {
		if a := m.head(fmt.Sprint("/v2/library/other/manifests/v", n)); a.status != http.StatusOK || a.header.Get("Docker-Content-Digest") != string(other.Index.Digest) {
			t.Errorf("HEAD of v%d: %d %v", n, a.status, a.header)
		}
		if n%50 == 0 {
			if n := known(); n > room+5 {
				t.Fatalf("%d tags in the index", n)
			}
		}
	}
	if n := known(); n < room/2 || n > room+5 {
		t.Errorf("%d tags in the index, want some %d", n, room)
	}
	up.Down()
	m.restart(impatient, registry(t, "docker.io", up.URL))
	m.want(m.get(tagPath("1")), img.Index)
}
