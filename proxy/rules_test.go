package proxy

import (
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	ut "github.com/cachalot-registry/cachalot/upstream/upstreamtest"
)

// TestRules: the policy that several rules give an image.
func TestRules(t *testing.T) {
	t.Parallel()
	cfg := testConfig()
	cfg.Rules = []Rule{
		{Match: []string{"docker.io/acme/base"}, NoStore: new(false), KeepFor: new(time.Duration(0))},
		{Match: []string{"docker.io/acme/*"}, KeepFor: new(time.Hour), Access: allow},
		{Match: []string{"docker.io/acme/**", "*.corp:5000/ci/**"}, NoStore: new(true)},
		{Match: []string{"**:latest"}, FreshFor: new(time.Second)},
		{Match: []string{"**:v[0-9]*", "**:[0-9]*.[0-9]*.[0-9]*"}, FreshFor: new(24 * time.Hour)},
		{Match: []string{"docker.io/library/{alpine,debian}"}, Access: allow, FreshFor: new(10 * time.Minute)},
		{Match: []string{"docker.io/**"}, Access: deny},
		{Match: []string{"docker.io/library/alpine"}, KeepFor: new(7 * time.Hour)},
		{Match: []string{"r.corp:5000/ci/tools"}, Pin: new(true)},
	}
	registries := map[string]target{}
	for _, name := range []string{"docker.io", "r.corp:5000"} {
		registries[name] = target{registry: registry(t, name, "http://127.0.0.1:1")}
	}
	for _, tc := range []struct {
		upstream, repo, tag string
		want                policy
		denied              string
	}{
		{"docker.io", "acme/app", "latest", policy{time.Second, time.Hour, true, false}, ""},
		{"docker.io", "acme/app", "", policy{time.Hour, time.Hour, true, false}, ""},
		{"docker.io", "acme/app", "v1.2", policy{24 * time.Hour, time.Hour, true, false}, ""},
		{"docker.io", "acme/app", "1.2.3-alpine", policy{24 * time.Hour, time.Hour, true, false}, ""},
		{"docker.io", "acme/app", "1", policy{time.Hour, time.Hour, true, false}, ""},
		{"docker.io", "acme/base", "latest", policy{time.Second, 0, false, false}, ""},
		{"docker.io", "library/alpine", "latest", policy{time.Second, 7 * time.Hour, false, false}, ""},
		{"docker.io", "library/alpine", "edge", policy{10 * time.Minute, 7 * time.Hour, false, false}, ""},
		{"docker.io", "library/debian", "", policy{10 * time.Minute, 0, false, false}, ""},
		{"r.corp:5000", "ci/a/b/c", "latest", policy{time.Second, 0, true, false}, ""},
		{"r.corp:5000", "ci/tools", "", policy{time.Hour, 0, false, false}, ""}, // pinned, so stored
		{"r.corp:5000", "other/ci", "latest", policy{time.Second, 0, false, false}, ""},
		{"docker.io", "library/alpine2", "latest", policy{}, "rules[6]"},
		{"docker.io", "acme/deep/app", "latest", policy{}, "rules[6]"}, // * matches one part
	} {
		at := registries[tc.upstream]
		at.repo, at.tag = tc.repo, tc.tag
		got, err := cfg.policyFor(at)
		if got != tc.want || (err != nil) != (tc.denied != "") || err != nil && !strings.Contains(err.Error(), tc.denied) {
			t.Errorf("%s/%s:%s: %+v, %v; want %+v, %q", tc.upstream, tc.repo, tc.tag, got, err, tc.want, tc.denied)
		}
	}
}

// TestPinned: the first matching rule with the setting decides, whatever the image's tag is.
func TestPinned(t *testing.T) {
	t.Parallel()
	cfg := testConfig()
	cfg.Rules = []Rule{{Match: []string{"docker.io/**"}, KeepFor: new(time.Hour)}, {Match: []string{"**"}, Pin: new(false)}}
	if cfg.Pinned() != nil {
		t.Error("something is pinned by rules that pin nothing")
	}
	cfg.Rules = []Rule{
		{Match: []string{"docker.io/**:latest"}, FreshFor: new(time.Second)},
		{Match: []string{"docker.io/acme/scratch"}, Pin: new(false), KeepFor: new(time.Hour)},
		{Match: []string{"docker.io/acme/**", "*.corp:5000/base"}, Pin: new(true)},
	}
	pinned := cfg.Pinned()
	for name, want := range map[[2]string]bool{
		{"docker.io", "acme/app"}:      true,
		{"docker.io", "acme/a/b"}:      true,
		{"docker.io", "acme/scratch"}:  false,
		{"docker.io", "library/acme"}:  false,
		{"r.corp:5000", "base"}:        true,
		{"r.corp:5000", "base/app"}:    false,
		{"quay.io", "docker.io/acme/"}: false,
	} {
		if got := pinned(name[0], name[1]); got != want {
			t.Errorf("%v is pinned: %v", name, got)
		}
	}
	for name, r := range map[string]Rule{
		"no limit":   {Match: []string{"**"}, Pin: new(true), KeepFor: new(time.Duration(0))},
		"not pinned": {Match: []string{"**"}, Pin: new(false), KeepFor: new(time.Hour), NoStore: new(true)},
	} {
		if err := r.Validate(time.Hour); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestInvalidRules: the error names the key and what to write.
func TestInvalidRules(t *testing.T) {
	t.Parallel()
	match := []string{"docker.io/**"}
	for want, r := range map[string]Rule{
		"match: missing":                {Access: deny},
		"match: nothing is set":         {Match: match},
		"match[1]: \"docker.io/[\" is":  {Match: []string{"**", "docker.io/["}, Access: deny},
		"match[0]: \"\" is not":         {Match: []string{""}, Access: deny},
		"match[0]: \"docker.io\" match": {Match: []string{"docker.io"}, Access: deny},
		"match[0]: \"**:\" is not":      {Match: []string{"**:"}, FreshFor: new(time.Second)},
		"match[0]: \"**:1\" has a tag":  {Match: []string{"**:1"}, Access: deny},
		"match[0]: \"**:2\" has a tag":  {Match: []string{"**:2"}, NoStore: new(true)},
		"match[0]: \"**:3\" has a tag":  {Match: []string{"**:3"}, KeepFor: new(time.Hour)},
		"match[0]: \"**:4\" has a tag":  {Match: []string{"**:4"}, Pin: new(true)},
		"pin: pinned content never":     {Match: match, KeepFor: new(time.Hour), Pin: new(true)},
		"pin: pinned content is stored": {Match: match, NoStore: new(true), Pin: new(true)},
		"pin: denied repositories have": {Match: match, Access: deny, Pin: new(true)},
		"access: \"never\" is not":      {Match: match, Access: "never"},
		"fresh_for: negative":           {Match: match, FreshFor: new(-time.Second)},
		"fresh_for: longer than tags.m": {Match: match, FreshFor: new(25 * time.Hour)},
		"keep_for: negative":            {Match: match, KeepFor: new(-time.Second)},
		"match[0]: \"localhost:5000\"":  {Match: []string{"localhost:5000"}, Access: deny},
		"match[0]: \"Docker.io/**\" m":  {Match: []string{"Docker.io/**"}, Access: deny},
		"match[0]: \"a.test:443/**\" m": {Match: []string{"a.test:443/**"}, Access: deny},
	} {
		if err := r.Validate(24 * time.Hour); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%+v: %v, want %s", r, err, want)
		}
	}
	if err := (Rule{Match: []string{"localhost:5000/**"}, Access: deny}).Validate(0); err != nil {
		t.Error(err)
	}
}

// TestDenied: a denied image gets an error, in every way to name it and even if it is
// stored. No upstream request is sent.
func TestDenied(t *testing.T) {
	t.Parallel()
	up := ut.New(t, ut.Options{})
	img := up.AddImage("library/app", "1", ut.NewImage(1, 10))
	up.AddImage("library/other", "1", img)
	m := newMirror(t, nil, registry(t, "docker.io", up.URL))
	m.pull("library/app", "1", img)
	m.aliases = map[string][]string{"docker.io": {"dockerhub"}}
	m.restart(func(c *Config) {
		c.Rules = []Rule{{Match: []string{"docker.io/library/other"}, Access: allow}, {Match: []string{"docker.io/**"}, Access: deny}}
	}, registry(t, "docker.io", up.URL))
	up.Forget()
	paths := []string{"/manifests/1", "/manifests/" + img.Index.Digest.String(), "/blobs/" + img.Config.Digest.String(), "/tags/list", "/referrers/" + img.Index.Digest.String()}
	n := 0
	for _, prefix := range []string{"/v2/library/app", "/v2/app", "/dockerhub/v2/app", "/docker.io/v2/library/app", "/v2/docker.io/app"} {
		for _, path := range paths {
			a := m.get(prefix + path)
			n++
			m.wantError(a, http.StatusNotFound, "NAME_UNKNOWN")
			if !strings.Contains(string(a.body), "docker.io/library/app: rules[1]") || a.cache() != "cachalot; fwd=miss; detail=denied" {
				t.Errorf("%s%s: %s %s", prefix, path, a.cache(), a.body)
			}
			if a := m.head(prefix + path); a.status != http.StatusNotFound {
				t.Errorf("HEAD %s%s: %d", prefix, path, a.status)
			}
			n++
		}
	}
	if n := up.Count(); n != 0 {
		t.Errorf("%d requests upstream", n)
	}
	denied := 0.0
	for _, kind := range []string{"manifest", "blob", "tags", "referrers"} {
		denied += testutil.ToFloat64(m.metrics.requests.WithLabelValues("docker.io", kind, "denied"))
	}
	if denied != float64(n) {
		t.Errorf("%v denials counted, want %d", denied, n)
	}
	m.pull("library/other", "1", img)
}

// TestFreshByRule: some tags are checked at each request, and some are not.
func TestFreshByRule(t *testing.T) {
	t.Parallel()
	up := ut.New(t, ut.Options{})
	img := up.AddImage("library/app", "latest", ut.NewImage(1, 10))
	for _, tag := range []string{"v1", "edge"} {
		up.Tag("library/app", tag, img.Index.Digest)
	}
	m := newMirror(t, func(c *Config) {
		c.Rules = []Rule{{Match: []string{"**:latest"}, FreshFor: new(time.Duration(0))}, {Match: []string{"**:v*"}, FreshFor: new(2 * time.Hour)}}
	}, registry(t, "docker.io", up.URL))
	for _, tag := range []string{"latest", "v1", "edge"} {
		m.want(m.get(tagPath(tag)), img.Index)
	}
	up.Forget()
	for tag, heads := range map[string]int{"latest": 2, "v1": 0, "edge": 0} {
		m.want(m.get(tagPath(tag)), img.Index)
		m.want(m.get(tagPath(tag)), img.Index)
		up.WantCounts(t, map[ut.Op]int{ut.HeadManifest: heads})
	}
}

// TestNoStore: concurrent clients share one download, and nothing is stored. Content that
// another repository stored is used.
func TestNoStore(t *testing.T) {
	t.Parallel()
	up := ut.New(t, ut.Options{})
	base := up.AddImage("library/base", "1", ut.NewImage(1, 300_000))
	app := up.AddImage("ci/app", "1", ut.NewImage(1, 300_000, 200_000)) // built on that base
	m := newMirror(t, func(c *Config) {
		c.Rules = []Rule{{Match: []string{"docker.io/ci/**"}, NoStore: new(true)}}
	}, registry(t, "docker.io", up.URL))
	m.pull("library/base", "1", base)
	up.Forget()

	const clients = 20
	release, arrived := make(chan struct{}), make(chan struct{}, 1)
	layer := app.Layers[1]
	up.Fault(ut.Match{Op: ut.GetBlob, Reference: layer.Digest.String(), Times: 1}, ut.Arrived(arrived), ut.Pause(release))
	var wg sync.WaitGroup
	for range clients {
		wg.Go(func() {
			a := m.get("/v2/ci/app/blobs/" + layer.Digest.String())
			m.want(a, layer)
			if strings.Contains(a.cache(), "stored") {
				t.Errorf("Cache-Status %q", a.cache())
			}
		})
	}
	<-arrived
	waitFor(t, func() bool { // a late client would start another download
		fill, ok := m.store.Fill(layer.Digest)
		return ok && fill.Readers == clients
	})
	close(release)
	wg.Wait()
	if n := up.Sent(layer.Digest); n != layer.Size {
		t.Errorf("%d bytes upstream, want %d", n, layer.Size)
	}
	up.Forget()
	for range 2 {
		m.pull("ci/app", "1", app)
	}
	// One HEAD for the base's layer. Everything else is fetched each time, also HEAD of the
	// tag, because its content is not stored.
	up.WantCounts(t, map[ut.Op]int{ut.HeadManifest: 2, ut.HeadBlob: 1, ut.GetManifest: 4, ut.GetBlob: 4})
	wantFiles(t, m, len(base.Blobs())+2)
	m.pull("library/base", "1", base)
	up.WantCounts(t, nil)

	// A tag that has moved costs only the client's own download.
	m.restart(func(c *Config) { c.Rules, c.FreshFor = []Rule{{Match: []string{"**"}, NoStore: new(true)}}, 0 }, registry(t, "docker.io", up.URL))
	moved := up.AddImage("ci/app", "1", ut.NewImage(2, 10))
	m.want(m.get("/v2/ci/app/manifests/1"), moved.Index)
	up.WantCounts(t, map[ut.Op]int{ut.HeadManifest: 1, ut.GetManifest: 1})
}

// wantFiles waits until no fills are on disk, and checks the number of blobs.
func wantFiles(t *testing.T, m *mirror, blobs int) {
	t.Helper()
	count := func(pattern ...string) int {
		files, err := filepath.Glob(filepath.Join(append([]string{m.dir}, pattern...)...))
		if err != nil {
			t.Fatal(err)
		}
		return len(files)
	}
	waitFor(t, func() bool { return count("fills", "*") == 0 })
	if n := count("blobs", "*", "*", "*"); n != blobs {
		t.Errorf("%d blobs on disk, want %d", n, blobs)
	}
}

// TestPipelineImagesDoNotEvict: images of pipelines, however many, do not evict an older
// base image.
func TestPipelineImagesDoNotEvict(t *testing.T) {
	t.Parallel()
	for name, rule := range map[string]Rule{
		"keep_for": {Match: []string{"docker.io/ci/**"}, KeepFor: new(time.Hour)},
		"no_store": {Match: []string{"docker.io/ci/**"}, NoStore: new(true)},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			up := ut.New(t, ut.Options{})
			base := up.AddImage("library/base", "1", ut.NewImage(1, 300_000))
			m := newMirror(t, nil, registry(t, "docker.io", up.URL))
			m.maxSize = 1 << 20
			m.restart(func(c *Config) { c.Rules = []Rule{rule} }, registry(t, "docker.io", up.URL))
			m.pull("library/base", "1", base)
			for seed := range uint64(8) { // more than the store's limit together
				m.pull("ci/app", "1", up.AddImage("ci/app", "1", ut.NewImage(100+seed, 200_000)))
				m.restart(func(c *Config) { c.Rules, c.FreshFor = []Rule{rule}, 0 }, registry(t, "docker.io", up.URL))
			}
			up.Down()
			m.pull("library/base", "1", base)
		})
	}
}

// TestDeletedTag: content of only a deleted tag is evicted first. Content that another tag
// shares stays.
func TestDeletedTag(t *testing.T) {
	t.Parallel()
	const size, room = 200_000, 1_100_000
	// Without the deletion, this layer would be evicted last.
	seed := uint64(1)
	var deleted, sharing, other ut.Image
	for ; ; seed++ {
		deleted, sharing, other = ut.NewImage(seed, size, size+1), ut.NewImage(seed, size), ut.NewImage(1000, size, size, size)
		last := true
		for _, layer := range append(sharing.Layers, other.Layers...) {
			last = last && layer.Digest < deleted.Layers[1].Digest
		}
		if last {
			break
		}
	}
	up := ut.New(t, ut.Options{})
	up.AddImage("library/app", "1", deleted)
	up.AddImage("library/app", "2", sharing)
	up.AddImage("library/app", "2-too", sharing)
	up.AddImage("library/other", "1", other)
	m := newMirror(t, nil, registry(t, "docker.io", up.URL))
	m.maxSize = room
	m.restart(due, registry(t, "docker.io", up.URL))
	m.pull("library/app", "1", deleted)
	m.pull("library/app", "2", sharing)
	m.pull("library/app", "2-too", sharing)
	m.pull("library/other", "1", other)
	m.restart(due, registry(t, "docker.io", up.URL)) // waits until the last blob is renamed; clients get the last byte earlier
	for _, tag := range []string{"1", "2-too"} {
		up.Tag("library/app", tag, "")
		m.wantError(m.get(tagPath(tag)), http.StatusNotFound, "MANIFEST_UNKNOWN")
	}
	waitFor(t, func() bool {
		m.proxy.mu.Lock()
		defer m.proxy.mu.Unlock()
		return !m.proxy.releasing
	})
	filler := up.AddImage("library/filler", "1", ut.NewImage(2000, size))
	m.pull("library/filler", "1", filler)
	up.Forget()
	for _, layer := range append(sharing.Layers, other.Layers...) {
		repo := "app"
		if layer.Digest != sharing.Layers[0].Digest {
			repo = "other"
		}
		m.want(m.get("/v2/library/"+repo+"/blobs/"+layer.Digest.String()), layer)
	}
	up.WantCounts(t, nil)
	m.want(m.get("/v2/library/app/blobs/"+deleted.Layers[1].Digest.String()), deleted.Layers[1])
	up.WantCounts(t, map[ut.Op]int{ut.GetBlob: 1})
}
