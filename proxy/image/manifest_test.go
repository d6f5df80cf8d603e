package image

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/cachalot-registry/cachalot/upstream"
)

// digestsOf returns the digests of descriptors.
func digestsOf(all []Descriptor) []digest.Digest {
	var digests []digest.Digest
	for _, d := range all {
		digests = append(digests, d.Digest)
	}
	return digests
}

func TestManifest_Decode(t *testing.T) {
	t.Parallel()
	a, b := digest.FromString("a"), digest.FromString("b")
	long := digest.SHA512.FromString("a")
	one := func(d digest.Digest) string { return fmt.Sprintf(`{"digest":%q,"size":1}`, d) }
	for name, tt := range map[string]struct {
		json               string
		manifests, blobs   []digest.Digest
		mediaType, failure string
	}{
		"a manifest": {
			json:      `{"schemaVersion":2,"mediaType":"m/t","config":` + one(a) + `,"layers":[` + one(b) + `,` + one(long) + `],"annotations":{"a":["b",{}]}}`,
			mediaType: "m/t", blobs: []digest.Digest{a, b, long},
		},
		"an index":             {json: `{"manifests":[` + one(a) + `,` + one(a) + `]}`, manifests: []digest.Digest{a, a}},
		"schema 1":             {json: `{"fsLayers":[{"blobSum":"` + string(a) + `"}],"history":[{"v1Compatibility":"{}"}]}`, blobs: []digest.Digest{a}},
		"both":                 {json: `{"manifests":[` + one(a) + `],"layers":[` + one(b) + `]}`, manifests: []digest.Digest{a}, blobs: []digest.Digest{b}},
		"other cases":          {json: `{"MANIFESTS":[{"DIGEST":"` + string(a) + `"}],"mediatype":"m/t"}`, manifests: []digest.Digest{a}, mediaType: "m/t"},
		"a key that is twice":  {json: `{"layers":[` + one(a) + `],"layers":[` + one(b) + `]}`, blobs: []digest.Digest{b}},
		"nothing":              {json: `{}`},
		"nulls":                {json: `{"manifests":null,"config":null,"layers":[null],"mediaType":null}`, blobs: []digest.Digest{""}},
		"no digest":            {json: `{"layers":[{"digest":"sha256:short"}]}`, blobs: []digest.Digest{"sha256:short"}},
		"a long word":          {json: `{"layers":[{"digest":"` + strings.Repeat("x", 1000) + `"}]}`, blobs: []digest.Digest{digest.Digest(strings.Repeat("x", 100) + "...")}},
		"no media type":        {json: `{"mediaType":"` + strings.Repeat("x", 256) + `","artifactType":"` + strings.Repeat("<", 50) + `"}`},
		"a strange media type": {json: `{"mediaType":"\u001b<x>"}`, mediaType: "\x1b<x>"},
		"cut off":              {json: `{"layers":[` + one(a) + `,`, failure: "EOF", blobs: []digest.Digest{a}},
		"a list":               {json: `[]`, failure: "not a manifest"},
		"null":                 {json: `null`, failure: "null"},
		"empty":                {json: ``, failure: "EOF"},
		"a number of layers":   {json: `{"layers":5}`, failure: "not a manifest"},
		"a size of words":      {json: `{"layers":[{"size":"5"}]}`, failure: "cannot unmarshal"},
		"a million layers":     {json: `{"layers":[` + strings.Repeat(`[`, 1_000_000), failure: "exceeded max depth"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m, _, err := Reader{}.Manifest(t.Context(), strings.NewReader(tt.json), -1, MaxDescriptors)
			if (err == nil) != (tt.failure == "") || err != nil && !strings.Contains(err.Error(), tt.failure) {
				t.Errorf("failure %v, want %q", err, tt.failure)
			}
			if !slices.Equal(digestsOf(m.Manifests), tt.manifests) || !slices.Equal(digestsOf(m.Blobs()), tt.blobs) || m.MediaType != tt.mediaType || m.ArtifactType != "" || m.Truncated {
				t.Errorf("%+v", m)
			}
		})
	}
}

// TestManifest_Bounds: the descriptors and bytes that are read of a manifest are bounded.
func TestManifest_Bounds(t *testing.T) {
	t.Parallel()
	read := func(text string) (Manifest, int64) {
		m, n, err := Reader{}.Manifest(t.Context(), strings.NewReader(text), -1, MaxDescriptors)
		if err != nil {
			t.Error(err)
		}
		return m, n
	}
	m, n := read(`{"layers":[` + strings.Repeat(`{},`, 1_000_000) + `{}]}`)
	if len(m.Layers) != MaxDescriptors || !m.Truncated || n > 100_000 {
		t.Errorf("%d descriptors of %d bytes, truncated %v", len(m.Layers), n, m.Truncated)
	}
	m, n = read(`{` + strings.Repeat(`"layers":[{},{},{},{},{}],`, 200_000) + `"x":0}`)
	if m.Read != MaxDescriptors || !m.Truncated || n > 200_000 {
		t.Errorf("%d descriptors of %d bytes, truncated %v", m.Read, n, m.Truncated)
	}
	most := `{"layers":[{}` + strings.Repeat(`,{}`, MaxDescriptors-1) + `]}`
	if m, _ = read(most); len(m.Layers) != MaxDescriptors || m.Truncated {
		t.Errorf("%d descriptors, truncated %v", len(m.Layers), m.Truncated)
	}
	word := strings.Repeat("x", 1<<19)
	m, _ = read(fmt.Sprintf(`{"mediaType":%q,"artifactType":%[1]q,"layers":[{"digest":%[1]q,"mediaType":%[1]q,"artifactType":%[1]q,"size":-5}]}`, word))
	if d := m.Layers[0]; len(m.MediaType)+len(m.ArtifactType)+len(d.Digest)+len(d.MediaType)+len(d.ArtifactType) > 200 || d.Size != 0 {
		t.Error("it keeps long words, or a size below 0")
	}
	m, _ = read(fmt.Sprintf(`{"manifests":[{"platform":{"os":%q,"architecture":%[1]q,"variant":%[1]q,"os.version":%[1]q}}]}`, word))
	if len(m.Manifests[0].Platform.String()) > 4*maxPlatformPart {
		t.Error("it keeps a long platform")
	}
	_, n, err := Reader{}.Manifest(t.Context(), strings.NewReader(`{"x":"`+strings.Repeat("x", 2*upstream.MaxManifestSize)+`"}`), -1, MaxDescriptors)
	if err == nil || n != upstream.MaxManifestSize {
		t.Errorf("read %d bytes, %v", n, err)
	}
}

// FuzzManifest: the decoder reads the same as encoding/json.
func FuzzManifest(f *testing.F) {
	for _, seed := range []string{
		`{"manifests":[{"digest":"a","size":1,"platform":{"os":"linux"}}],"mediaType":"x"}`, `{"config":{"digest":"b"},"layers":[{"digest":"c"},null]}`,
		`{"fsLayers":[{"blobSum":"d"}]}`, `{"layers":null}`, `{"Layers":[],"x":{"y":[1,2,{"z":"\u0000"}]}}`, `null`, `[]`, `{"layers":{}}`, `{} {}`, `{"config":5}`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		m, _, err := Reader{}.Manifest(t.Context(), strings.NewReader(string(b)), -1, MaxDescriptors)
		if n := len(m.Manifests) + len(m.Layers) + len(m.FSLayers); n > MaxDescriptors || n > m.Read {
			t.Errorf("%d descriptors", n)
		}
		for _, d := range slices.Concat(m.Manifests, m.Blobs()) {
			if len(d.Digest) > 200 || len(d.MediaType) > MaxMediaType || d.Size < 0 {
				t.Errorf("%+v", d)
			}
		}
		var want struct {
			MediaType, ArtifactType string
			Config                  ocispec.Descriptor
			Manifests, Layers       []ocispec.Descriptor
			FSLayers                []struct{ BlobSum digest.Digest }
		}
		switch known := json.Unmarshal(b, &want); {
		case known != nil || m.Truncated || string(bytes.TrimSpace(b)) == "null":
			return
		case err != nil:
			t.Errorf("encoding/json reads it, and here it is: %v", err)
			return
		}
		if len(m.Manifests) != len(want.Manifests) || len(m.Layers) != len(want.Layers) || len(m.FSLayers) != len(want.FSLayers) {
			t.Errorf("%+v, want %+v", m, want)
		}
	})
}
