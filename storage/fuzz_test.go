package storage

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
)

// FuzzFileName: a digest has one file name in fills/ and one in quarantine/. Its paths stay in
// the store's folder.
func FuzzFileName(f *testing.F) {
	d := digest.FromString("x")
	for _, s := range []string{partialOf(d, "docker.io").name(), flatName(digest.SHA512.FromString("x")), "sha256-../../../etc/passwd", "sha256-" + strings.ToUpper(d.Encoded()), "sha256:" + d.Encoded(), "md5-d41d8cd98f00b204e9800998ecf8427e", "-", "sha256-" + d.Encoded() + "." + strings.Repeat("a", 300)} {
		f.Add(s, "docker.io")
	}
	k := disk{root: f.TempDir()}
	f.Fuzz(func(t *testing.T, name, upstream string) {
		flat, origin, _ := strings.Cut(name, ".")
		d, ok := digestOf(flat)
		if !ok {
			return
		}
		if flatName(d) != flat || (partial{d, origin}).name() != flat+"."+origin || !isDigest(string(d)) {
			t.Errorf("%q is a file of %s", name, d)
		}
		for folder, path := range map[string]string{"blobs": k.blob(d), "quarantine": k.quarantined(d), "fills": k.partial(partialOf(d, upstream))} {
			if rel, err := filepath.Rel(filepath.Join(k.root, folder), path); err != nil || !filepath.IsLocal(rel) || len(filepath.Base(path)) > 255 {
				t.Errorf("%q is at %s", name, path)
			}
		}
	})
}
