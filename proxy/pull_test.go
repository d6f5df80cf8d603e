package proxy

import (
	"context"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/cachalot-registry/cachalot/upstream"
	"github.com/cachalot-registry/cachalot/upstream/distributiontest"
	ut "github.com/cachalot-registry/cachalot/upstream/upstreamtest"
)

// TestPull is the main case: cold, warm, stale, and with the upstream down, each with its
// exact upstream requests.
func TestPull(t *testing.T) {
	t.Parallel()
	up := ut.New(t, ut.Options{Auth: ut.Bearer, ExpiresIn: 300})
	img := up.AddImage("library/app", "1", ut.NewImage(1, 10, 0, 100_000, 3<<20))
	m := newMirror(t, nil, registry(t, "docker.io", up.URL))

	m.pull("library/app", "1", img)
	up.WantCounts(t, map[ut.Op]int{ut.Token: 1, ut.HeadManifest: 1, ut.GetManifest: 2, ut.GetBlob: 5})
	m.pull("library/app", "1", img)
	m.pull("app", "1", img) // Docker Hub's short name
	up.WantCounts(t, nil)

	due := func(c *Config) { c.FreshFor = 0 }
	m.restart(due, registry(t, "docker.io", up.URL))
	m.pull("library/app", "1", img)
	up.WantCounts(t, map[ut.Op]int{ut.Token: 1, ut.HeadManifest: 1})

	up.Down()
	m.restart(due, registry(t, "docker.io", up.URL))
	m.pull("library/app", "1", img)
	if a := m.get("/v2/library/app/manifests/1"); a.cache() != "cachalot; hit; detail=stale-if-error" {
		t.Errorf("Cache-Status %q", a.cache())
	}
}

// TestPullByTag: podman sends GET by tag.
func TestPullByTag(t *testing.T) {
	t.Parallel()
	up := ut.New(t, ut.Options{})
	img := up.AddImage("library/app", "1", ut.NewImage(2, 10))
	m := newMirror(t, nil, registry(t, "docker.io", up.URL))
	for i, cache := range []string{"cachalot; fwd=miss; stored", "cachalot; hit"} {
		a := m.get("/v2/library/app/manifests/1", "Accept", "application/vnd.docker.distribution.manifest.v1+json, application/vnd.oci.image.index.v1+json")
		m.want(a, img.Index)
		if a.cache() != cache || a.header.Get("Content-Type") != img.Index.MediaType {
			t.Errorf("%d: Cache-Status %q, type %q", i, a.cache(), a.header.Get("Content-Type"))
		}
	}
	up.WantCounts(t, map[ut.Op]int{ut.HeadManifest: 1, ut.GetManifest: 1})
}

// TestStorm: 50 clients pull one cold image; a third of them leave half-way, and the
// upstream resets connections. Each byte is fetched once (I7).
func TestStorm(t *testing.T) {
	t.Parallel()
	up := ut.New(t, ut.Options{Auth: ut.Bearer, TokenElsewhere: true, CDN: true})
	img := up.AddImage("library/app", "1", ut.NewImage(3, 24<<20, 1000))
	layer := img.Layers[0]
	for i, cut := range []int{5 << 20, 1 << 19, 1 << 18} { // the shortest part has 1 MiB
		up.Fault(ut.Match{Op: ut.CDN, After: i, Times: 1}, ut.CutAfter(cut))
	}
	m := newMirror(t, nil, registry(t, "docker.io", up.URL))
	var wg sync.WaitGroup
	for i := range 50 {
		wg.Go(func() {
			m.want(m.get("/v2/library/app/manifests/1"), img.Index)
			m.want(m.get("/v2/library/app/manifests/"+img.Manifest.Digest.String()), img.Manifest)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			resp, err := m.begin(ctx, http.MethodGet, "/v2/library/app/blobs/"+layer.Digest.String())
			if err != nil {
				t.Error(err)
				return
			}
			defer func() { _ = resp.Body.Close() }()
			if i%3 == 0 {
				if _, err := io.CopyN(io.Discard, resp.Body, layer.Size/2); err != nil {
					t.Error(err)
				}
				return
			}
			hash := digest.Canonical.Hash()
			if _, err := io.Copy(hash, resp.Body); err != nil || digest.NewDigest(digest.Canonical, hash) != layer.Digest {
				t.Errorf("client %d: %v", i, err)
			}
		})
	}
	wg.Wait()
	if sent := up.Sent(layer.Digest); sent < layer.Size || sent > layer.Size+layer.Size/50 {
		t.Errorf("%d bytes of the layer left the upstream, want %d and what was in flight at three resets", sent, layer.Size)
	}
	got := up.Counts()
	if got[ut.Token] != 1 || got[ut.HeadManifest] != 1 || got[ut.GetManifest] != 2 || got[ut.GetBlob] < 4 || got[ut.CDN] != got[ut.GetBlob] {
		t.Errorf("upstream requests: %v", got)
	}
}

// TestSecondRepository: the same blob in another repository costs one HEAD and no bytes. It
// is not served if the upstream does not have it there.
func TestSecondRepository(t *testing.T) {
	t.Parallel()
	up := ut.New(t, ut.Options{})
	layer := ut.NewContent(ocispec.MediaTypeImageLayer, ut.Random(5, 100_000))
	up.AddBlob("library/a", layer)
	up.AddBlob("library/b", layer)
	up.AddImage("library/c", "1", ut.NewImage(6, 10))
	m := newMirror(t, nil, registry(t, "docker.io", up.URL))
	path := func(repo string) string { return "/v2/" + repo + "/blobs/" + layer.Digest.String() }
	m.want(m.get(path("library/a")), layer)
	up.WantCounts(t, map[ut.Op]int{ut.GetBlob: 1})
	m.want(m.get(path("library/b")), layer)
	m.want(m.get(path("library/b")), layer)
	up.WantCounts(t, map[ut.Op]int{ut.HeadBlob: 1})
	m.wantError(m.get(path("library/c")), http.StatusNotFound, "BLOB_UNKNOWN")
	m.wantError(m.get(path("library/c")), http.StatusNotFound, "BLOB_UNKNOWN")
	m.wantError(m.get("/v2/library/a/manifests/"+layer.Digest.String()), http.StatusNotFound, "MANIFEST_UNKNOWN")
	up.WantCounts(t, map[ut.Op]int{ut.HeadBlob: 1, ut.GetBlob: 1, ut.HeadManifest: 1, ut.GetManifest: 1})
}

// TestOtherUpstream: ?ns= names the registry. A registry's private blob is not served
// through another registry.
func TestOtherUpstream(t *testing.T) {
	t.Parallel()
	hub := ut.New(t, ut.Options{})
	quay := ut.New(t, ut.Options{Auth: ut.Basic, Username: "robot", Password: "secret"})
	img := quay.AddImage("team/app", "1", ut.NewImage(7, 1000))
	hub.AddImage("team/app", "1", ut.NewImage(8, 1000))
	m := newMirror(t, nil, registry(t, "docker.io", hub.URL), registry(t, "quay.io", quay.URL, withPassword("robot", "secret")))
	a := m.get("/v2/team/app/manifests/1?ns=quay.io")
	m.want(a, img.Index)
	if a.header.Get("OCI-Namespace") != "quay.io" {
		t.Errorf("OCI-Namespace %q", a.header.Get("OCI-Namespace"))
	}
	layer := img.Layers[0]
	m.want(m.get("/v2/team/app/blobs/"+layer.Digest.String()+"?ns=quay.io"), layer)
	m.wantError(m.get("/v2/team/app/blobs/"+layer.Digest.String()), http.StatusNotFound, "BLOB_UNKNOWN")
	hub.WantCounts(t, map[ut.Op]int{ut.GetBlob: 1})
	quay.Forget()
	m.wantError(m.get("/v2/team/app/manifests/1?ns=ghcr.io"), http.StatusNotFound, "NAME_UNKNOWN")
	m.wantError(m.get("/v2/team/app/manifests/1?ns=169.254.169.254"), http.StatusNotFound, "NAME_UNKNOWN")
	hub.WantCounts(t, nil)
	quay.WantCounts(t, nil)
}

// TestHeadDownloadsNothing: HEAD of cold content is a HEAD upstream.
func TestHeadDownloadsNothing(t *testing.T) {
	t.Parallel()
	up := ut.New(t, ut.Options{})
	img := up.AddImage("library/app", "1", ut.NewImage(9, 5<<20))
	m := newMirror(t, nil, registry(t, "docker.io", up.URL))
	nothing := ut.NewContent("", nil)
	up.AddBlob("library/app", nothing)
	if a := m.head("/v2/library/app/blobs/" + nothing.Digest.String()); a.status != http.StatusOK || a.header.Get("Content-Length") != "0" {
		t.Errorf("nothing: %d %v", a.status, a.header)
	}
	up.Forget()
	layer := img.Layers[0]
	for range 3 {
		a := m.head("/v2/library/app/blobs/" + layer.Digest.String())
		if a.status != http.StatusOK || a.header.Get("Content-Length") != "5242880" || a.header.Get("Docker-Content-Digest") != layer.Digest.String() {
			t.Errorf("%d %v", a.status, a.header)
		}
	}
	if up.SentAll() != 0 {
		t.Errorf("%d bytes from upstream", up.SentAll())
	}
	up.WantCounts(t, map[ut.Op]int{ut.HeadBlob: 3})
	a := m.head("/v2/library/app/manifests/" + img.Index.Digest.String())
	if a.status != http.StatusOK || a.header.Get("Content-Type") != img.Index.MediaType {
		t.Errorf("%d %v", a.status, a.header)
	}
	up.WantCounts(t, map[ut.Op]int{ut.HeadManifest: 1})
}

// TestWrongContent: if the upstream sends wrong content, no client gets a complete body,
// nothing is stored, and the next pull is right (I1).
func TestWrongContent(t *testing.T) {
	t.Parallel()
	for name, fault := range map[string]ut.Fault{
		"wrong bytes":        ut.WrongBytes(),
		"longer":             ut.ChangedLength(10),
		"shorter":            ut.ChangedLength(-10),
		"a page":             ut.Body("text/html", []byte("<html>log in</html>")),
		"wrong without size": ut.NoLength(),
		"wrong without end":  ut.OpenEnd(),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			up := ut.New(t, ut.Options{})
			img := up.AddImage("library/app", "1", ut.NewImage(11, 100_000))
			layer := img.Layers[0]
			faults := []ut.Fault{fault}
			if strings.HasPrefix(name, "wrong without") {
				faults = append(faults, ut.WrongBytes())
			}
			m := newMirror(t, nil, registry(t, "docker.io", up.URL))
			for _, op := range []ut.Op{ut.GetBlob, ut.GetManifest} {
				script := up.Fault(ut.Match{Op: op}, faults...)
				up.Forget()
				path, c := "/v2/library/app/blobs/"+layer.Digest.String(), layer
				if op == ut.GetManifest {
					path, c = "/v2/library/app/manifests/"+img.Index.Digest.String(), img.Index
				}
				for range 2 {
					a := m.get(path)
					if a.err == nil && a.status == http.StatusOK {
						t.Errorf("%s: a complete answer, %d bytes", op, len(a.body))
					}
					if op == ut.GetManifest && (a.status != http.StatusBadGateway || a.code() == "") {
						t.Errorf("manifest: %d %s %v", a.status, a.code(), a.err)
					}
				}
				if n := up.Count(op); n > 4 { // twice, and once more if the range is wrong
					t.Errorf("%d x %s", n, op)
				}
				script.Remove()
				up.Forget()
				m.wantError(m.get(path), http.StatusBadGateway, "UNAVAILABLE") // so that the client tries another mirror
				up.WantCounts(t, nil)
				m.proxy.negative.entries.Purge() // the stored failure has expired
				m.want(m.get(path), c)
			}
			kept(t, m)
		})
	}
}

// kept checks that the name of every file in blobs/ matches its content (I2).
func kept(t *testing.T, m *mirror) {
	t.Helper()
	err := filepath.WalkDir(filepath.Join(m.dir, "blobs"), func(path string, e os.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if sum := digest.FromBytes(b).Encoded(); sum != e.Name() && len(e.Name()) == 64 {
			t.Errorf("%s holds %s", path, sum)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

// TestManifest_ByteForByte: a manifest is served byte for byte.
func TestManifest_ByteForByte(t *testing.T) {
	t.Parallel()
	up := ut.New(t, ut.Options{})
	m := newMirror(t, nil, registry(t, "docker.io", up.URL))
	sha512 := ut.NewImageBy(digest.SHA512, 12, 1000)
	up.AddImage("library/app", "sha512", sha512)
	m.pull("library/app", "sha512", sha512)
	for name, c := range map[string]ut.Content{
		"empty":    ut.NewContent("application/vnd.example.nothing", nil),
		"artifact": ut.NewContent(ocispec.MediaTypeImageManifest, []byte(`{"schemaVersion":2,"custom":{"x":[1,2,{"y":null}]},  "config":{}}`)),
		"nested":   ut.NewContent(ocispec.MediaTypeImageIndex, []byte(`{"schemaVersion":2,"manifests":[{"mediaType":"application/vnd.oci.image.index.v1+json","digest":"sha256:`+strings.Repeat("a", 64)+`","size":3}]}`)),
		"both":     ut.NewContent(ocispec.MediaTypeImageManifest, []byte(`{"schemaVersion":2,"layers":[],"manifests":[]}`)),
		"schema1":  ut.NewContent("application/vnd.docker.distribution.manifest.v1+prettyjws", []byte("{\n   \"schemaVersion\": 1\n}")),
		"deep":     ut.NewContent(ocispec.MediaTypeImageManifest, []byte(strings.Repeat("[", 100_000)+strings.Repeat("]", 100_000))),
	} {
		up.AddManifest("library/app", c, name)
		for range 2 {
			a := m.get("/v2/library/app/manifests/" + name)
			m.want(a, c)
			if got := a.header.Get("Content-Type"); got != c.MediaType {
				t.Errorf("%s: media type %q", name, got)
			}
		}
	}
}

// TestIndexLostAndFound: if index/ is lost, content is served again for one HEAD each,
// without a download (I8).
func TestIndexLostAndFound(t *testing.T) {
	t.Parallel()
	up := ut.New(t, ut.Options{})
	img := up.AddImage("library/app", "1", ut.NewImage(13, 1000, 2000))
	m := newMirror(t, nil, registry(t, "docker.io", up.URL))
	m.pull("library/app", "1", img)
	m.stop()
	up.Forget()
	if err := os.RemoveAll(filepath.Join(m.dir, "index")); err != nil {
		t.Fatal(err)
	}
	m.start(nil, registry(t, "docker.io", up.URL))
	m.pull("library/app", "1", img)
	up.WantCounts(t, map[ut.Op]int{ut.HeadManifest: 2, ut.HeadBlob: 3})
}

// TestClientLeaves: the only client of a cold blob leaves, and the download still finishes (I7).
func TestClientLeaves(t *testing.T) {
	t.Parallel()
	up := ut.New(t, ut.Options{})
	layer := ut.NewContent("", ut.Random(14, 1<<20))
	up.AddBlob("library/app", layer)
	release := make(chan struct{})
	up.Fault(ut.Match{Op: ut.GetBlob}, ut.StallAfter(500_000, release))
	m := newMirror(t, nil, registry(t, "docker.io", up.URL))
	ctx, cancel := context.WithCancel(t.Context())
	resp, err := m.begin(ctx, http.MethodGet, "/v2/library/app/blobs/"+layer.Digest.String())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.CopyN(io.Discard, resp.Body, 1000); err != nil {
		t.Fatal(err)
	}
	cancel()
	_ = resp.Body.Close()
	close(release)
	m.want(m.get("/v2/library/app/blobs/"+layer.Digest.String()), layer)
	up.WantCounts(t, map[ut.Op]int{ut.GetBlob: 1})
	waitFor(t, func() bool { return m.inside.Load() == 0 })
	if n := testutil.ToFloat64(m.metrics.requests.WithLabelValues("docker.io", "blob", "error")); n != 0 {
		t.Errorf("%v errors counted, but nothing failed", n)
	}
}

// TestSlowReader: a client that reads nothing does not block others.
func TestSlowReader(t *testing.T) {
	t.Parallel()
	up := ut.New(t, ut.Options{})
	layer := ut.NewContent("", ut.Random(15, 32<<20))
	up.AddBlob("library/app", layer)
	m := newMirror(t, nil, registry(t, "docker.io", up.URL))
	path := "/v2/library/app/blobs/" + layer.Digest.String()
	slow, err := m.begin(t.Context(), http.MethodGet, path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = slow.Body.Close() }()
	m.want(m.get(path), layer)
	if _, err := io.CopyN(io.Discard, slow.Body, layer.Size); err != nil {
		t.Error(err)
	}
	up.WantCounts(t, map[ut.Op]int{ut.GetBlob: 1})
}

// TestRealRegistry pulls through from distribution's registry with both kinds of
// authentication: cold, warm, stale, and down.
func TestRealRegistry(t *testing.T) {
	t.Parallel()
	for name, auth := range map[string]ut.Auth{"bearer": ut.Bearer, "basic": ut.Basic} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			up := distributiontest.New(t, distributiontest.Options{Auth: auth, Username: "u", Password: "p", Private: true})
			img := up.PushImage("library/app", "1", ut.NewImage(40, 10, 1<<20))
			up.Forget()
			hub := func() *upstream.Registry { return registry(t, "docker.io", up.URL, withPassword("u", "p")) }
			m := newMirror(t, nil, hub())
			m.pull("library/app", "1", img)
			tokens := 0
			if auth == ut.Bearer {
				tokens = 1
			}
			got := up.Counts()
			if got[ut.Token] != tokens || got[ut.HeadManifest] != 1 || got[ut.GetManifest] != 2 || got[ut.GetBlob] != 3 {
				t.Errorf("cold: %v", got)
			}
			up.Forget()
			m.pull("library/app", "1", img)
			if got := up.Counts(); len(got) > 0 {
				t.Errorf("warm: %v", got)
			}
			m.restart(due, hub())
			m.pull("library/app", "1", img)
			if got := up.Counts(); got[ut.HeadManifest] != 1 || got[ut.GetManifest]+got[ut.GetBlob]+got[ut.HeadBlob] != 0 {
				t.Errorf("due: %v", got)
			}
			up.Down()
			m.pull("library/app", "1", img)
		})
	}
}
