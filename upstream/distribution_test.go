package upstream

import (
	"bytes"
	"errors"
	"io"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/cachalot-registry/cachalot/upstream/distributiontest"
	"github.com/cachalot-registry/cachalot/upstream/upstreamtest"
)

// TestDistribution pulls an image from distribution's own registry.
func TestDistribution(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name    string
		options distributiontest.Options
		cfg     Config
		tokens  int
		refused int
	}{
		{name: "open"},
		{
			name:    "basic",
			options: distributiontest.Options{Auth: upstreamtest.Basic, Username: "me", Password: "canary"},
			cfg:     Config{Accounts: []Account{{Username: "me", Password: "canary"}}}, refused: 1,
		},
		{
			name:    "bearer, anonymous",
			options: distributiontest.Options{Auth: upstreamtest.Bearer, Username: "me", Password: "canary"},
			tokens:  1, refused: 1,
		},
		{
			name:    "bearer with a password",
			options: distributiontest.Options{Auth: upstreamtest.Bearer, Username: "me", Password: "canary", Private: true},
			cfg:     Config{Accounts: []Account{{Username: "me", Password: "canary"}}}, tokens: 1, refused: 1,
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			d := distributiontest.New(t, tt.options)
			img := d.PushImage(repo, "latest", upstreamtest.NewImage(1, 300_000, 0))
			tt.cfg.URLs = []string{d.URL}
			r := dialing(t, tt.cfg)
			ctx := t.Context()

			head, err := r.Head(ctx, KindManifest, repo, "latest")
			if err != nil || head.Digest != img.Index.Digest || head.Size != img.Index.Size || head.MediaType != img.Index.MediaType {
				t.Fatalf("head: %+v, %v; want %+v", head, err, img.Index.Descriptor)
			}
			for _, m := range []upstreamtest.Content{img.Index, img.Manifest} {
				if got := read(t, r, KindManifest, m.Digest, 0); !bytes.Equal(got, m.Bytes) {
					t.Errorf("manifest %s: other bytes", m.Digest)
				}
			}
			for _, b := range img.Blobs() {
				if got := read(t, r, KindBlob, b.Digest, 0); !bytes.Equal(got, b.Bytes) {
					t.Errorf("blob %s: other bytes", b.Digest)
				}
			}
			if got := read(t, r, KindBlob, img.Layers[0].Digest, 100_000); !bytes.Equal(got, img.Layers[0].Bytes[100_000:]) {
				t.Error("resumed blob: other bytes")
			}
			if tags, err := allTags(t, r, repo); err != nil || len(tags) != 1 || tags[0] != "latest" {
				t.Errorf("tags: %v, %v", tags, err)
			}
			if _, err := r.Head(ctx, KindBlob, repo, digest.FromString("nothing").String()); !errors.Is(err, ErrNotFound) {
				t.Errorf("unknown blob: %v", err)
			}
			if b, _, err := r.Referrers(ctx, repo, img.Manifest.Digest); err != nil || !bytes.Contains(b, []byte(`"manifests":[]`)) {
				t.Errorf("referrers: %s, %v", b, err)
			}
			if n := d.Count(upstreamtest.Token); n != tt.tokens {
				t.Errorf("%d token requests, want %d", n, tt.tokens)
			}
			if n := d.Count(upstreamtest.Ping); n != 1 {
				t.Errorf("%d pings, want 1", n)
			}
			refused := 0
			for _, q := range d.Requests() {
				if q.Status == 401 {
					if q.Op != upstreamtest.Ping {
						t.Errorf("%s was answered 401", q.Op)
					}
					refused++
				}
			}
			if refused != tt.refused {
				t.Errorf("%d requests were answered 401, want %d", refused, tt.refused)
			}
			if want := img.Size() + 200_000; d.SentAll() != want {
				t.Errorf("%d bytes sent, want %d", d.SentAll(), want)
			}
		})
	}
}

// read reads all of a blob or manifest from offset.
func read(t *testing.T, r *Registry, kind Kind, d digest.Digest, offset int64) []byte {
	t.Helper()
	c, err := r.Open(t.Context(), kind, repo, d, Span{Offset: offset})
	if err != nil {
		t.Fatalf("open %s: %v", d, err)
	}
	defer c.Body.Close()
	if c.Offset != offset {
		t.Fatalf("offset %d, want %d", c.Offset, offset)
	}
	b, err := io.ReadAll(c.Body)
	if err != nil {
		t.Fatalf("read %s: %v", d, err)
	}
	if c.Size != offset+int64(len(b)) {
		t.Errorf("size %d announced, %d received from %d", c.Size, len(b), offset)
	}
	return b
}
