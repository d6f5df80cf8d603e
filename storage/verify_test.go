package storage

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/cachalot-registry/cachalot/storage/download"
	"github.com/cachalot-registry/cachalot/upstream/upstreamtest"
)

// TestVerify: Verify detects damaged blobs with and without a running store. The store
// downloads them again, once.
func TestVerify(t *testing.T) {
	t.Parallel()
	for _, beside := range []bool{true, false} {
		t.Run(map[bool]string{true: "beside a store", false: "alone"}[beside], func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			s := openStore(t, dir)
			origins := keep(t, s, 4, 100_000)
			empty := &origin{content: []byte{}}
			mustFetch(t, s, empty, Miss)
			sha512 := digest.SHA512.FromBytes(upstreamtest.Random(1, 50))
			if _, _, err := fetch(t, s, sha512, download.Bytes("", upstreamtest.Random(1, 50))); err != nil {
				t.Fatal(err)
			}
			settle(t, s)
			damaged := map[digest.Digest][]byte{
				origins[0].digest(): overwrite(t, s, origins[0].digest(), flip(99_999)),
				origins[2].digest(): overwrite(t, s, origins[2].digest(), zero),
				origins[3].digest(): overwrite(t, s, origins[3].digest(), cut(5)),
			}
			if !beside {
				if err := s.Close(); err != nil {
					t.Fatal(err)
				}
			}
			var read, all int64
			progress := func(n, of int64) { read, all = read+n, of }
			for _, dryRun := range []bool{true, false} {
				v, err := Verify(t.Context(), dir, dryRun, progress)
				if err != nil || v.Blobs != 6 || v.Bytes != 300_055 || len(v.Damaged) != 3 {
					t.Fatalf("%+v, %v", v, err)
				}
				for i, o := range []*origin{origins[0], origins[2], origins[3]} {
					got := v.Damaged[i]
					where := ""
					if !dryRun {
						where = filepath.Join(dir, "quarantine", "sha256-"+o.digest().Encoded())
					}
					want := Damage{o.digest(), int64(len(damaged[o.digest()])), got.Reason, where}
					if got != want || !strings.Contains(got.Reason, ErrDigest.Error()) {
						t.Errorf("%+v, want %+v", got, want)
					}
				}
			}
			if read != 2*300_055 || all != 300_055 {
				t.Errorf("progress: %d of %d", read, all)
			}
			v, err := Verify(t.Context(), dir, false, progress)
			if want := (Verification{Blobs: 3, Bytes: 100_050}); err != nil || !reflect.DeepEqual(v, want) {
				t.Errorf("afterwards %+v, %v", v, err)
			}
			if beside {
				mustFetch(t, s, origins[0], Miss) // before the store has noticed
				settle(t, s)
				s.health.updateQuarantine()
				if got := testutil.ToFloat64(s.metrics.quarantined); got != 3 {
					t.Errorf("quarantined_blobs_total %v", got)
				}
			} else {
				s = openStore(t, dir)
				s.reconcile()
				mustFetch(t, s, origins[0], Miss)
				settle(t, s)
			}
			checkDisk(t, s)
			for i, want := range []Outcome{Hit, Hit, Miss, Miss} {
				mustFetch(t, s, origins[i], want)
			}
			settle(t, s)
			checkDisk(t, s)
			checkQuarantine(t, s, damaged)
			for i, want := range []int64{2, 1, 2, 2} {
				if got := origins[i].opens.Load(); got != want {
					t.Errorf("blob %d: %d downloads, want %d", i, got, want)
				}
			}
		})
	}
}

// TestVerify_ReportsErrors: a blob that cannot be checked is an error, not damage.
func TestVerify_ReportsErrors(t *testing.T) {
	t.Parallel()
	nothing := func(int64, int64) {}
	if _, err := Verify(t.Context(), t.TempDir(), false, nothing); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no cache: %v", err)
	}
	dir := t.TempDir()
	s := openStore(t, dir)
	o := &origin{content: upstreamtest.Random(1, 1000)}
	mustFetch(t, s, o, Miss)
	settle(t, s)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if v, err := Verify(ctx, dir, false, nothing); !errors.Is(err, context.Canceled) || len(v.Damaged) > 0 {
		t.Errorf("broken off: %+v, %v", v, err)
	}
	overwrite(t, s, o.digest(), cut(5))
	if err := errors.Join(os.Remove(s.disk.quarantine()), os.WriteFile(s.disk.quarantine(), nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	if v, err := Verify(t.Context(), dir, false, nothing); err == nil || len(v.Damaged) != 1 || v.Damaged[0].Quarantine != "" {
		t.Errorf("nowhere to move to: %+v, %v", v, err)
	}
	if err := errors.Join(os.RemoveAll(filepath.Dir(s.disk.blob(o.digest()))), os.WriteFile(filepath.Dir(s.disk.blob(o.digest())), nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	if v, err := Verify(t.Context(), dir, false, nothing); err == nil || v.Blobs != 0 {
		t.Errorf("a folder that cannot be listed: %+v, %v", v, err)
	}
}
