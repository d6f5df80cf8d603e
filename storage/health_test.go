package storage

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/cachalot-registry/cachalot/upstream/upstreamtest"
)

// newTestHealth makes a health with its own folder. forgotten has the blobs that it forgets.
func newTestHealth(t *testing.T, free func(digest.Digest) bool) (h *health, forgotten map[digest.Digest]bool) {
	t.Helper()
	k, err := openDisk(filepath.Join(t.TempDir(), "store"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = k.close() })
	forgotten = map[digest.Digest]bool{}
	exclusive := func(d digest.Digest, f func()) bool {
		if !free(d) {
			return false
		}
		f()
		return true
	}
	l, m, log := indexOnly(t).ledger, NewMetrics(), slog.New(slog.DiscardHandler)
	h = newHealth(t.Context(), k, l, &space{metrics: m, log: log}, m, log,
		exclusion{exclusive, exclusive, func(d digest.Digest) { forgotten[d] = true }})
	h.quarantineMax = 1 << 20
	return h, forgotten
}

// TestHealth: if a file is still damaged when its digest is not in use, it goes to quarantine
// and counts there, and its blob is forgotten.
func TestHealth(t *testing.T) {
	t.Parallel()
	good := upstreamtest.Random(1, 5000)
	d := digest.FromBytes(good)
	errBad := errors.New("damaged")
	for name, tc := range map[string]struct {
		file    []byte // nil: none
		busy    bool
		find    func(*health)
		gone    bool
		suspect bool
	}{
		"a good blob is read again":     {file: good, find: func(h *health) { h.recheck(d) }},
		"a damaged blob is read again":  {file: good[1:], find: func(h *health) { h.recheck(d) }, gone: true},
		"no file is read again":         {find: func(h *health) { h.recheck(d) }},
		"it is in use":                  {file: good[1:], busy: true, find: func(h *health) { h.recheck(d) }},
		"its file is too short":         {file: good[1:], find: func(h *health) { h.quarantine(d, h.badSize(d, 5000)) }, gone: true},
		"its file is as long as linked": {file: good, find: func(h *health) { h.quarantine(d, h.badSize(d, 5000)) }},
		"its file opens":                {file: good, find: func(h *health) { h.quarantine(d, h.unopenable(d)) }},
		"it is damaged no longer":       {file: good, find: func(h *health) { h.quarantine(d, func() error { return nil }) }},
		"it is damaged":                 {file: good, find: func(h *health) { h.quarantine(d, func() error { return errBad }) }, gone: true},
		"it was condemned":              {file: good, find: func(h *health) { h.condemn(d, func() error { return errBad }); h.retryCondemned() }, gone: true},
		"it was condemned in error":     {file: good, find: func(h *health) { h.condemn(d, func() error { return nil }); h.retryCondemned() }},
		"it was condemned, and cleared": {file: good, find: func(h *health) { h.condemn(d, func() error { return errBad }); h.clear(d); h.retryCondemned() }},
		"it is a suspect":               {file: good, find: func(h *health) { h.suspect(d); h.suspect(d) }, suspect: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h, forgotten := newTestHealth(t, func(digest.Digest) bool { return !tc.busy })
			if tc.file != nil {
				if err := errors.Join(os.MkdirAll(filepath.Dir(h.disk.blob(d)), 0o700), os.WriteFile(h.disk.blob(d), tc.file, 0o600)); err != nil {
					t.Fatal(err)
				}
			}
			tc.find(h)
			if _, err := os.Stat(h.disk.quarantined(d)); (err == nil) != tc.gone {
				t.Errorf("in quarantine: %v", err)
			}
			if h.disk.has(d) != (tc.file != nil && !tc.gone) || forgotten[d] != tc.gone {
				t.Errorf("file is here: %t; forgotten: %t", h.disk.has(d), forgotten[d])
			}
			var want int64
			if tc.gone {
				want = blocks(int64(len(tc.file)))
			}
			if bytes := h.space.inQuarantine(); bytes != want {
				t.Errorf("%d bytes in quarantine, want %d", bytes, want)
			}
			if h.isCondemned(d) {
				t.Error("it is condemned")
			}
			if _, suspect := h.takeSuspects()[d]; suspect != tc.suspect || len(h.takeSuspects()) != 0 {
				t.Errorf("suspect: %t", suspect)
			}
		})
	}
}

// TestHealthCondemns: a file that can be neither moved nor removed is condemned, until it
// is cleared.
func TestHealthCondemns(t *testing.T) {
	t.Parallel()
	h, forgotten := newTestHealth(t, func(digest.Digest) bool { return true })
	d := digest.FromString("a")
	// A folder that is not empty cannot be removed, nor moved below a file.
	if err := errors.Join(os.MkdirAll(filepath.Join(h.disk.blob(d), "x"), 0o700), os.RemoveAll(h.disk.quarantine()),
		os.WriteFile(h.disk.quarantine(), nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	h.quarantine(d, func() error { return errors.New("damaged") })
	if !h.isCondemned(d) || forgotten[d] {
		t.Errorf("condemned: %t; forgotten: %t", h.isCondemned(d), forgotten[d])
	}
	h.clear(d)
	if h.isCondemned(d) {
		t.Error("still condemned")
	}
}
