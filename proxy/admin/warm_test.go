package admin

import (
	"encoding/json"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/cachalot-registry/cachalot/proxy"
	ut "github.com/cachalot-registry/cachalot/upstream/upstreamtest"
)

// manyPlatforms is an index of images for several platforms, and one attestation.
func manyPlatforms(up *ut.Registry, repo, tag string) (index ut.Content, images map[string]ut.Image) {
	images = map[string]ut.Image{}
	list := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex}
	for n, name := range []string{"linux/amd64", "linux/arm64/v8", "linux/arm/v7", "unknown/unknown"} {
		parts := strings.Split(name+"/", "/")
		i := ut.NewImage(uint64(n+1), 20_000, 30_000+n)
		images[name] = i
		up.AddBlob(repo, i.Blobs()...)
		up.AddManifest(repo, i.Manifest)
		d := i.Manifest.Descriptor
		d.Platform = &ocispec.Platform{OS: parts[0], Architecture: parts[1], Variant: parts[2]}
		list.Manifests = append(list.Manifests, d)
	}
	b, err := json.Marshal(list)
	if err != nil {
		panic(err)
	}
	index = ut.NewContent(list.MediaType, b)
	up.AddManifest(repo, index, tag)
	return index, images
}

// A warming fetches each blob once, for the requested platforms. A pull then sends no
// upstream request.
func TestWarm(t *testing.T) {
	t.Parallel()
	up := ut.New(t, ut.Options{})
	index, images := manyPlatforms(up, "library/app", "1")
	m := newMirror(t, nil, registry(t, "docker.io", up.URL))
	a := newAdmin(t, m, nil, nil)
	var end WarmEvent
	a.post("warm", `{"images": ["app:1", "docker.io/library/app:1", "app@`+index.Digest.String()+`"], "platforms": ["linux/arm64", "linux/arm/v7"]}`, http.StatusOK, &end)
	want := index.Size
	for _, platform := range []string{"linux/arm64/v8", "linux/arm/v7"} {
		want += images[platform].Size() - images[platform].Index.Size
	}
	if end.Event != "end" || end.Images != 3 || end.ImagesFailed != 0 || end.Size != 3*want || end.Done != 3*want || end.Fetched != want || end.BlobsFetched != 9 || end.Error != "" {
		t.Errorf("%+v, want %d bytes thrice", end, want)
	}
	up.WantCounts(t, map[ut.Op]int{ut.HeadManifest: 1, ut.GetManifest: 3, ut.GetBlob: 6})
	m.want(m.get("/v2/library/app/manifests/1"), index)
	arm := images["linux/arm64/v8"]
	m.want(m.get("/v2/library/app/manifests/"+arm.Manifest.Digest.String()), arm.Manifest)
	for _, b := range arm.Blobs() {
		m.want(m.get("/v2/library/app/blobs/"+b.Digest.String()), b)
	}
	up.WantCounts(t, nil)
	if n := m.onDisk(); n != 9 {
		t.Errorf("%d blobs, want an index, two manifests and six blobs", n)
	}
	var look ImageAnswer
	a.get("image?name=app:1", &look)
	var complete []string
	for _, one := range look.Manifests {
		if one.Complete {
			complete = append(complete, one.Platform)
		}
	}
	if look.Complete || !slices.Equal(complete, []string{"linux/arm64/v8", "linux/arm/v7"}) || look.StoredSize != want {
		t.Errorf("complete for %v, %d of %d bytes", complete, look.StoredSize, want)
	}
	// The metrics count only the four pulls and the tag as client requests.
	var st StatsAnswer
	a.get("stats", &st)
	if st.Traffic.Requests != 5 || st.Traffic.Results["hit"] != 5 {
		t.Errorf("%+v", st.Traffic)
	}

	a.post("warm", `{"images": ["app:1"], "platforms": ["windows/amd64"]}`, http.StatusOK, &end)
	if end.ImagesFailed != 1 {
		t.Errorf("%+v", end)
	}
	up.WantCounts(t, nil)
	a.post("warm", `{"images": ["app:1"], "platforms": ["all"]}`, http.StatusOK, &end)
	if end.ImagesFailed != 0 || end.BlobsFetched != 8 {
		t.Errorf("%+v", end)
	}
}

// A warming and concurrent client pulls share a fill. The rules apply to a warming.
func TestWarmSharesAndObeys(t *testing.T) {
	t.Parallel()
	up := ut.New(t, ut.Options{})
	img := up.AddImage("library/app", "1", ut.NewImage(1, 500_000))
	yes := true
	m := newMirror(t, func(c *proxy.Config) {
		c.Rules = []proxy.Rule{
			{Match: []string{"docker.io/secret/**"}, Access: "deny"},
			{Match: []string{"docker.io/huge/**"}, NoStore: &yes},
		}
	}, registry(t, "docker.io", up.URL))
	a := newAdmin(t, m, nil, nil)
	release, arrived := make(chan struct{}), make(chan struct{}, 10)
	up.Fault(ut.Match{Op: ut.GetBlob, Reference: img.Layers[0].Digest.String()}, ut.Arrived(arrived), ut.StallAfter(100_000, release))
	pulled := make(chan reply, 1)
	go func() {
		<-arrived // the request of the warming
		resp, err := m.begin(t.Context(), http.MethodGet, "/v2/library/app/blobs/"+img.Layers[0].Digest.String())
		if err != nil {
			pulled <- reply{err: err}
			return
		}
		close(release)
		defer resp.Body.Close()
		pulled <- reply{status: resp.StatusCode, cache: resp.Header.Get("Cache-Status")}
	}()
	var end WarmEvent
	a.post("warm", `{"images": ["app:1", "secret/x:1", "huge/x:1"], "platforms": ["linux/amd64"]}`, http.StatusOK, &end)
	if got := <-pulled; got.err != nil || got.status != http.StatusOK || got.cache != "cachalot; fwd=miss; collapsed" {
		t.Errorf("%+v", got)
	}
	if end.ImagesFailed != 2 || end.ImagesDone != 3 {
		t.Errorf("%+v", end)
	}
	up.WantCounts(t, map[ut.Op]int{ut.HeadManifest: 1, ut.GetManifest: 2, ut.GetBlob: 2})
}

// If its client leaves, a warming starts no more downloads, and running downloads finish.
func TestWarmLeft(t *testing.T) {
	t.Parallel()
	up := ut.New(t, ut.Options{})
	sizes := []int{200_000, 200_001, 200_002, 200_003, 200_004, 200_005, 200_006, 200_007}
	img := up.AddImage("library/app", "1", ut.NewImage(1, sizes...))
	m := newMirror(t, nil, registry(t, "docker.io", up.URL))
	ended := make(chan struct{})
	a := newAdmin(t, m, nil, func(c *Config) {
		c.Current = func() (*proxy.Proxy, func()) { return m.proxy, func() { close(ended) } }
	})
	release, arrived := make(chan struct{}), make(chan struct{}, 100)
	up.Fault(ut.Match{Op: ut.GetBlob}, ut.Arrived(arrived), ut.StallAfter(100, release))
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, a.server.URL+apiRoot+"warm", strings.NewReader(`{"images": ["app:1"], "platforms": ["all"]}`))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := a.server.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	if e, ok := lines(t, resp.Body)(); !ok || e.Event != "progress" {
		t.Errorf("%+v", e)
	}
	for range maxWarming {
		<-arrived
	}
	n := 0
	for _, f := range m.store.Fills() {
		if !f.Manifest {
			n++
		}
	}
	if n != maxWarming {
		t.Errorf("%d downloads at once, want %d", n, maxWarming)
	}
	resp.Body.Close()
	<-ended
	close(release)
	m.settle()
	if n := up.Count(ut.GetBlob); n != maxWarming {
		t.Errorf("%d downloads, want no more than the %d that had begun", n, maxWarming)
	}
	if n := m.onDisk(); n != 2+maxWarming {
		t.Errorf("%d blobs kept", n)
	}
	if _, err := m.store.Blob(img.Index.Digest); err != nil {
		t.Error(err)
	}
}

// A warming fails if the disk does not store the content.
func TestWarmNotStored(t *testing.T) {
	t.Parallel()
	up := ut.New(t, ut.Options{})
	app := up.AddImage("library/app", "1", ut.NewImage(1, 20_000))
	m := newMirror(t, nil, registry(t, "docker.io", up.URL))
	a := newAdmin(t, m, nil, nil)
	layer := app.Layers[0].Digest
	folder := filepath.Join(m.dir, "blobs", "sha256", layer.Encoded()[:2])
	if err := errors.Join(os.RemoveAll(folder), os.WriteFile(folder, nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	var end WarmEvent
	a.post("warm", `{"images": ["app:1"], "platforms": ["all"]}`, http.StatusOK, &end)
	if end.ImagesFailed != 1 || end.BlobsDone >= end.Blobs {
		t.Errorf("%+v, want one that failed", end)
	}
}

// A malformed digest in a manifest makes a warming fail. The warming waits for the
// downloads that are in progress.
func TestWarmMalformedDigest(t *testing.T) {
	t.Parallel()
	up := ut.New(t, ut.Options{})
	app := ut.NewImage(1, 20_000)
	var broken ocispec.Manifest
	if err := json.Unmarshal(app.Manifest.Bytes, &broken); err != nil {
		t.Fatal(err)
	}
	broken.Layers = append(broken.Layers, ocispec.Descriptor{Digest: "sha256:short"})
	b, err := json.Marshal(broken)
	if err != nil {
		t.Fatal(err)
	}
	up.AddBlob("library/app", app.Blobs()...)
	up.AddManifest("library/app", ut.NewContent(broken.MediaType, b), "1")
	m := newMirror(t, nil, registry(t, "docker.io", up.URL))
	a := newAdmin(t, m, nil, nil)
	release, arrived := make(chan struct{}), make(chan struct{}, 10)
	up.Fault(ut.Match{Op: ut.GetBlob}, ut.Arrived(arrived), ut.StallAfter(100, release))
	go func() {
		<-arrived
		<-arrived
		close(release)
	}()
	var end WarmEvent
	a.post("warm", `{"images": ["app:1"], "platforms": ["all"]}`, http.StatusOK, &end)
	if end.ImagesFailed != 1 || end.Blobs != 3 || end.BlobsDone != 3 {
		t.Errorf("%+v, want a failure, once the manifest and two blobs are here", end)
	}
	for _, b := range app.Blobs() {
		if !m.store.IsStored(b.Digest) {
			t.Errorf("%s is not kept", b.Digest)
		}
	}
}
