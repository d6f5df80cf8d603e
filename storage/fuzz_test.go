package storage

import (
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
)

// FuzzFileName: a file in fills/ or quarantine/ is a digest's only by the name that its
// digest has, and stays in the store's folder.
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

// FuzzPins: a file of pins is read or refused; what was read is written so that it is read
// as the same.
func FuzzPins(f *testing.F) {
	for _, s := range []string{`{"version":1,"pins":[{"match":"b/*","created":"2000-01-01T00:00:00Z"},{"match":"a/*","comment":"x"}]}`, `{"version":2}`, `{"version":1,"pins":null}`, `{"version":1,"pins":[{"created":"x"}]}`, `null`, `{`, ``} {
		f.Add([]byte(s))
	}
	k := disk{root: f.TempDir()}
	f.Fuzz(func(t *testing.T, b []byte) {
		if err := os.WriteFile(k.pins(), b, 0o600); err != nil {
			t.Fatal(err)
		}
		pins, err := k.readPins()
		if err != nil {
			return
		}
		if len(pins) > mostPins || !slices.IsSortedFunc(pins, func(a, b Pin) int { return strings.Compare(a.Pattern, b.Pattern) }) {
			t.Errorf("%q: %+v", b, pins)
		}
		for i := range pins {
			if y := pins[i].Created.Year(); y < 0 || y > 9999 {
				return // encoding/json writes no such time
			}
		}
		if err := k.writePins(pins); err != nil {
			t.Fatal(err)
		}
		again, err := k.readPins()
		if err != nil || len(again) != len(pins) || len(pins) > 0 && !reflect.DeepEqual(again, pins) {
			t.Errorf("%+v became %+v, %v", pins, again, err)
		}
	})
}
