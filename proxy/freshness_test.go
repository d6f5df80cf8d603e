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

func TestJudge(t *testing.T) {
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

// due makes every tag due for a check.
func due(c *Config) { c.FreshFor = 0 }

// impatient is due, and waits for a check no longer than it must.
func impatient(c *Config) { c.FreshFor, c.RevalidateTimeout = 0, 20*time.Millisecond }

func tagPath(tag string) string { return "/v2/library/app/manifests/" + tag }

// TestOneCheckForAll: many waiters, one HEAD.
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
			if a.cache() != "cachalot; fwd=stale; fwd-status=304" && a.cache() != "cachalot; hit" { // who comes after the check
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

// TestUpstreamFails: what is kept is served, whatever way the upstream fails,
// and the answer says so.
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
			patience := due // where the upstream answers, the check is over once it has
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
				most = 300 // of 600: all that comes from there rests five minutes at most
				m.wantError(a, http.StatusBadGateway, "UNAVAILABLE")
			}
			if after, err := strconv.Atoi(a.header.Get("Retry-After")); err != nil || after > most || after < most-10 {
				t.Errorf("nothing kept: Retry-After %v", a.header)
			}
			// An object, and where all rest after a 429, one.
			want := map[ut.Op]int{ut.HeadManifest: 1, ut.GetManifest: 1}
			if name == "when" {
				want = map[ut.Op]int{ut.HeadManifest: 2, ut.GetManifest: 2}
			}
			up.WantCounts(t, want)
		})
	}
}

// TestBlackHole: only the first client waits for revalidate_timeout; then the
// upstream is suspect, asked by one probe at a time, until it answers.
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
	// A HEAD is given up after 5 s, and a slow machine has time for others in their places.
	given := 1 + int(time.Since(begun)/(5*time.Second))
	if n := up.Count(ut.HeadManifest); n > given*(1+maxChecks) {
		t.Errorf("%d requests to a black hole, want the first and some probes", n)
	}
	hole.Remove()
	close(release)
	waitFor(t, func() bool { return !m.proxy.suspicion.doubtsUpstream("docker.io") })
}

// TestDeadAtStart: the mirror starts and serves with its upstream gone.
func TestDeadAtStart(t *testing.T) {
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

// TestTagMoves: the new content is fetched before the tag moves, and a tag
// whose new content cannot be had stays what it was.
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

// TestUpstreamSaysNo: a tag deleted upstream goes at the next check, and the
// no is remembered. A refusal is one where a rule says so.
func TestUpstreamSaysNo(t *testing.T) {
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
			// What is kept by digest was confirmed for this repository, and stays.
			m.want(m.get(tagPath(img.Index.Digest.String())), img.Index)
		})
	}
}

// TestNoDigestHeader: an upstream that tells no digest, or knows no HEAD, is
// asked by GET and hashed.
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

// TestHeadWithout: where an upstream's HEAD says no length or type, ours does
// all the same, for clients insist on them; that costs the one GET that follows
// anyway.
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

// TestLyingDigest: a HEAD that names another digest leads to that content where
// there is such, else to an error: never to other bytes under the name.
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

// TestTag_Expired: beyond max_stale only the upstream's word counts.
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

// TestManyTags: a client that asks for many tags, by HEAD, has the index grow to its bound and no
// further, and what others have pulled is served on when its registry is gone.
func TestManyTags(t *testing.T) {
	t.Parallel()
	const tags, room = 600, 100
	up := ut.New(t, ut.Options{})
	img, other := up.AddImage("library/app", "1", ut.NewImage(1, 10)), up.AddImage("library/other", "1", ut.NewImage(2, 10))
	for n := range tags {
		up.Tag("library/other", fmt.Sprint("v", n), other.Index.Digest)
	}
	m := &mirror{t: t, dir: t.TempDir(), maxIndex: room * 90} // a record takes 86 to 90
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
