package admin

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"testing"
	"time"

	"github.com/cachalot-registry/cachalot/proxy"
	"github.com/cachalot-registry/cachalot/storage"
	ut "github.com/cachalot-registry/cachalot/upstream/upstreamtest"
)

// shared makes two images of a repository that have a layer in common: two layers each.
func shared(up *ut.Registry, repo string) (one, two ut.Image) {
	one = up.AddImage(repo, "1", ut.NewImage(1, 20_000, 30_000))
	two = ut.NewImage(2, 40_000)
	// The second image's manifest names a layer of the first one's.
	var m map[string]any
	if err := json.Unmarshal(two.Manifest.Bytes, &m); err != nil {
		panic(err)
	}
	m["layers"] = append(m["layers"].([]any), one.Layers[0].Descriptor)
	b, err := json.Marshal(m)
	if err != nil {
		panic(err)
	}
	two.Manifest = ut.NewContent(two.Manifest.MediaType, b)
	two.Index = two.Manifest
	two.Layers = append(two.Layers, one.Layers[0])
	up.AddBlob(repo, two.Blobs()...)
	up.AddManifest(repo, two.Manifest, "2")
	return one, two
}

// A purge of a tag removes what only this tag has in its repository. The next pull fetches
// only that.
func TestPurgeImage(t *testing.T) {
	t.Parallel()
	up := ut.New(t, ut.Options{})
	one, two := shared(up, "library/app")
	other := up.AddImage("acme/copy", "1", one)
	m := newMirror(t, nil, registry(t, "docker.io", up.URL))
	a := newAdmin(t, m, nil, nil)
	m.pullAll("library/app", "1", one)
	m.pullAll("library/app", "2", two)
	m.want(m.get("/v2/acme/copy/blobs/"+other.Layers[1].Digest.String()), other.Layers[1]) // the other repository has a link to it
	before := m.onDisk()
	up.Forget()

	var dry, did PurgeAnswer
	a.post("purge", `{"image": "app:1", "dry_run": true}`, http.StatusOK, &dry)
	if m.onDisk() != before {
		t.Error("a dry run has removed something")
	}
	a.post("purge", `{"image": "app:1"}`, http.StatusOK, &did)
	// Index, manifest and config are removed. Tag 2 still needs the first layer, and the
	// other repository the second.
	if did.Tags != 1 || did.Blobs != 3 || did.Unlinked != 1 || did.Bytes != 3*4096 || len(did.Items) != 4 {
		t.Errorf("%+v", did)
	}
	if dry.Tags != did.Tags || dry.Blobs != did.Blobs || dry.Bytes != did.Bytes || dry.Unlinked != did.Unlinked || !dry.DryRun {
		t.Errorf("a dry run said %+v, and it was %+v", dry, did)
	}
	if got := m.onDisk(); got != before-3 {
		t.Errorf("%d blobs on disk, want %d", got, before-3)
	}
	up.WantCounts(t, nil)
	m.pullAll("library/app", "2", two) // everything of tag 2 is stored
	m.want(m.get("/v2/acme/copy/blobs/"+other.Layers[1].Digest.String()), other.Layers[1])
	up.WantCounts(t, nil)
	m.pullAll("library/app", "1", one)
	// Everything that was removed; one HEAD checks that this repository has the second layer.
	up.WantCounts(t, map[ut.Op]int{ut.HeadManifest: 1, ut.GetManifest: 2, ut.GetBlob: 1, ut.HeadBlob: 1})
	a.refused(http.MethodPost, "purge", `{"image": "app:none"}`, http.StatusNotFound, "not_stored")

	// A purge by digest also removes the tags that point to it.
	a.post("purge", fmt.Sprintf(`{"image": "docker.io/library/app@%s"}`, one.Index.Digest), http.StatusOK, &did)
	if did.Tags != 1 || did.Blobs != 3 {
		t.Errorf("%+v", did)
	}
	if _, ok := m.store.Tag(storage.TagKey{Upstream: "docker.io", Repository: "library/app", Name: "1"}); ok {
		t.Error("the tag still points to what has gone")
	}
}

// A purge forgets a stored 404, so that an image that is new upstream is served at once.
func TestPurgeForgetsAnswers(t *testing.T) {
	t.Parallel()
	up := ut.New(t, ut.Options{})
	img := up.AddImage("library/app", "1", ut.NewImage(1, 1000))
	m := newMirror(t, nil, registry(t, "docker.io", up.URL))
	a := newAdmin(t, m, nil, nil)
	m.pullAll("library/app", "1", img)
	m.wantError(m.get("/v2/library/app/manifests/2"), http.StatusNotFound, "MANIFEST_UNKNOWN")
	up.AddImage("library/app", "2", img)
	m.wantError(m.get("/v2/library/app/manifests/2"), http.StatusNotFound, "MANIFEST_UNKNOWN") // the 404 is stored for an hour in this test
	moved := ut.NewImage(7, 1000)
	up.AddImage("library/app", "1", moved)
	m.want(m.get("/v2/library/app/manifests/1"), img.Index) // fresh for an hour
	up.Forget()
	a.post("purge", `{"image": "docker.io/library/app:1"}`, http.StatusOK, nil)
	m.want(m.get("/v2/library/app/manifests/2"), img.Index)
	m.want(m.get("/v2/library/app/manifests/1"), moved.Index)
	up.WantCounts(t, map[ut.Op]int{ut.HeadManifest: 2, ut.GetManifest: 2})
}

// A client that reads a purged blob gets all of it. A blob in download stays.
func TestPurgeUnderReaders(t *testing.T) {
	t.Parallel()
	up := ut.New(t, ut.Options{})
	img := up.AddImage("library/app", "1", ut.NewImage(1, 8<<20, 500_000))
	m := newMirror(t, nil, registry(t, "docker.io", up.URL))
	a := newAdmin(t, m, nil, nil)
	big, slow := img.Layers[0], img.Layers[1]
	m.want(m.get("/v2/library/app/manifests/1"), img.Index)
	m.want(m.get("/v2/library/app/manifests/"+img.Manifest.Digest.String()), img.Manifest)
	m.want(m.get("/v2/library/app/blobs/"+big.Digest.String()), big)

	m.settle()
	reading, err := m.begin(t.Context(), http.MethodGet, "/v2/library/app/blobs/"+big.Digest.String())
	if err != nil {
		t.Fatal(err)
	}
	defer reading.Body.Close()
	release := make(chan struct{})
	up.Fault(ut.Match{Op: ut.GetBlob, Times: 1}, ut.StallAfter(100_000, release))
	filling, err := m.begin(t.Context(), http.MethodGet, "/v2/library/app/blobs/"+slow.Digest.String())
	if err != nil {
		t.Fatal(err)
	}
	defer filling.Body.Close()

	var did PurgeAnswer
	a.post("purge", `{"image": "app:1"}`, http.StatusOK, &did)
	if did.Blobs != 3 || did.Busy != 1 { // index, manifest and the large layer
		t.Errorf("%+v", did)
	}
	a.refused(http.MethodPost, "purge", fmt.Sprintf(`{"digest": %q}`, slow.Digest), http.StatusConflict, "busy")
	close(release)
	for _, r := range []struct {
		resp *http.Response
		want ut.Content
	}{{reading, big}, {filling, slow}} {
		got, err := io.ReadAll(r.resp.Body)
		if err != nil || string(got) != string(r.want.Bytes) {
			t.Errorf("%d bytes of %d, %v", len(got), r.want.Size, err)
		}
	}
	up.Forget()
	m.want(m.get("/v2/library/app/blobs/"+slow.Digest.String()), slow)
	m.want(m.get("/v2/library/app/blobs/"+big.Digest.String()), big)
	up.WantCounts(t, map[ut.Op]int{ut.GetBlob: 1})
}

func TestPurgeSweeps(t *testing.T) {
	t.Parallel()
	up := ut.New(t, ut.Options{})
	one := up.AddImage("library/app", "1", ut.NewImage(1, 20_000))
	two := up.AddImage("library/web", "1", ut.NewImage(2, 20_000))
	three := up.AddImage("acme/tool", "1", ut.NewImage(3, 20_000))
	m := newMirror(t, nil, registry(t, "docker.io", up.URL), registry(t, "quay.io", up.URL))
	a := newAdmin(t, m, nil, nil)
	m.pullAll("library/app", "1", one)
	m.pullAll("library/web", "1", two)
	m.pullAll("quay.io/acme/tool", "1", three)

	var did PurgeAnswer
	a.post("purge", `{"unused_for": "1h"}`, http.StatusOK, &did)
	if !did.empty() || m.onDisk() != 12 {
		t.Errorf("%+v", did)
	}
	a.post("purge", `{"repository": "web"}`, http.StatusOK, &did)
	if did.Tags != 1 || did.Blobs != 4 || m.onDisk() != 8 {
		t.Errorf("%+v", did)
	}
	a.refused(http.MethodPost, "purge", `{"repository": "web"}`, http.StatusNotFound, "not_stored")
	a.post("purge", `{"upstream": "quay.io"}`, http.StatusOK, &did)
	if did.Tags != 1 || did.Blobs != 4 || m.onDisk() != 4 {
		t.Errorf("%+v", did)
	}
	a.post("purge", fmt.Sprintf(`{"digest": %q}`, one.Layers[0].Digest), http.StatusOK, &did)
	if did.Blobs != 1 || m.onDisk() != 3 {
		t.Errorf("%+v", did)
	}
	var st StatsAnswer
	a.get("stats", &st)
	if st.Storage.Blobs != 3 || st.Storage.UnlinkedBlobs != 0 {
		t.Errorf("%+v", st.Storage)
	}
	up.Forget()
	m.pullAll("library/app", "1", one)
	up.WantCounts(t, map[ut.Op]int{ut.GetBlob: 1})
}

// Pinned content stays unless the request says otherwise.
func TestPurgePinned(t *testing.T) {
	t.Parallel()
	up := ut.New(t, ut.Options{})
	one := up.AddImage("library/app", "1", ut.NewImage(1, 20_000))
	two := up.AddImage("library/web", "1", ut.NewImage(2, 20_000))
	m := newMirror(t, nil, registry(t, "docker.io", up.URL))
	a := newAdmin(t, m, nil, nil)
	m.pullAll("library/app", "1", one)
	m.pullAll("library/web", "1", two)
	a.post("pins", `{"match": "web"}`, http.StatusCreated, nil)

	a.refused(http.MethodPost, "purge", `{"image": "web:1"}`, http.StatusConflict, "pinned")
	a.refused(http.MethodPost, "purge", `{"repository": "web"}`, http.StatusConflict, "pinned")
	a.refused(http.MethodPost, "purge", fmt.Sprintf(`{"digest": %q}`, two.Config.Digest), http.StatusConflict, "pinned")
	var did PurgeAnswer
	a.post("purge", `{"upstream": "docker.io"}`, http.StatusOK, &did)
	if did.Tags != 1 || did.Blobs != 4 || did.Pinned != 4 {
		t.Errorf("%+v", did)
	}
	up.Forget()
	m.pullAll("library/web", "1", two)
	up.WantCounts(t, nil)
	a.post("purge", `{"upstream": "docker.io", "pinned": true}`, http.StatusOK, &did)
	if did.Tags != 1 || did.Blobs != 4 || m.onDisk() != 0 {
		t.Errorf("%+v", did)
	}
}

// Pins survive a restart and the loss of the index.
func TestPins(t *testing.T) {
	t.Parallel()
	up := ut.New(t, ut.Options{})
	yes := true
	rules := func(c *proxy.Config) { c.Rules = []proxy.Rule{{Match: []string{"docker.io/acme/**"}, Pin: &yes}} }
	reg := registry(t, "docker.io", up.URL)
	m := newMirror(t, rules, reg)
	a := newAdmin(t, m, nil, nil)
	a.post("pins", `{"match": "alpine", "comment": "every build"}`, http.StatusCreated, nil)
	a.post("pins", `{"match": "docker.io/library/alpine"}`, http.StatusOK, nil)
	a.post("pins", `{"match": "quay.io/**"}`, http.StatusCreated, nil)
	a.refused(http.MethodPost, "pins", `{"match": "alpine:3"}`, http.StatusUnprocessableEntity, "invalid")
	a.refused(http.MethodPost, "pins", `{"match": "a["}`, http.StatusUnprocessableEntity, "invalid")
	a.refused(http.MethodPost, "pins", `{"match": "*"}`, http.StatusUnprocessableEntity, "invalid")
	m.stop()
	if err := removeIndex(m.dir); err != nil {
		t.Fatal(err)
	}
	m.start(rules, reg)
	a = newAdmin(t, m, nil, nil)
	var got PinsAnswer
	a.get("pins", &got)
	if len(got.Pins) != 3 || got.Pins[0].Source != "rules[0]" || got.Pins[1].Match != "docker.io/library/alpine" ||
		got.Pins[1].Comment != "every build" || time.Since(got.Pins[1].Created) > time.Hour || !m.store.Pinned("quay.io", "x/y") {
		t.Errorf("%+v", got)
	}
	a.refused(http.MethodDelete, "pins?match=docker.io/acme/**", "", http.StatusConflict, "configured")
	a.refused(http.MethodDelete, "pins?match=busybox", "", http.StatusNotFound, "not_pinned")
	a.refused(http.MethodDelete, "pins", "", http.StatusUnprocessableEntity, "invalid")
	if status := a.ask(http.MethodDelete, "pins?match=alpine", "", nil); status != http.StatusNoContent {
		t.Error(status)
	}
	if status := a.ask(http.MethodDelete, "pins?match=quay.io/**", "", nil); status != http.StatusNoContent {
		t.Error(status)
	}
	if m.store.Pinned("quay.io", "x/y") || !m.store.Pinned("docker.io", "acme/x") {
		t.Error("a pin that was removed counts, or a rule does not")
	}
	m.restart(rules, reg)
	if n := len(m.pins.list()); n != 0 {
		t.Errorf("%d pins are back", n)
	}
}
