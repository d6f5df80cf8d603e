package storage

import (
	"errors"
	"log/slog"
	"testing"

	"github.com/cachalot-registry/cachalot/storage/index"
)

// filling is the bytes that fills/ takes.
func (a *space) filling() int64 {
	partial, _, _ := a.state()
	return partial
}

// promised is the bytes that running fills have yet to take.
func (a *space) promised() int64 {
	_, reserved, _ := a.state()
	return reserved
}

// inQuarantine is the bytes that quarantine/ takes.
func (a *space) inQuarantine() int64 {
	_, _, quarantined := a.state()
	return quarantined
}

// TestSpace: bytes are in one part of the account at a time, and no part is above the limits.
func TestSpace(t *testing.T) {
	t.Parallel()
	const limit = 100 * block
	errDisk := errors.New("cannot be written")
	for name, tc := range map[string]struct {
		free, minFree                         int64
		freeErr                               error
		unlimited                             bool
		do                                    func(t *testing.T, a *space, blobs *int64)
		blobs, partial, reserved, quarantined int64
		over                                  int64 // for 100 blocks more, at 100 percent
		over90                                int64 // at 90
	}{
		"empty": {do: func(*testing.T, *space, *int64) {}, over: 0, over90: 10 * block},
		"reserved": {
			do: func(_ *testing.T, a *space, _ *int64) { a.reserve(3 * block) }, reserved: 3 * block,
			over: 3 * block, over90: 13 * block,
		},
		"refused": {do: func(t *testing.T, a *space, _ *int64) {
			t.Helper()
			if !a.reserve(limit) || a.reserve(1) {
				t.Error("want the limit, and no more")
			}
			a.release(limit)
		}, over90: 10 * block},
		"spent": {
			do: func(_ *testing.T, a *space, _ *int64) { a.reserve(3 * block); a.spend(2 * block) }, reserved: block, partial: 2 * block,
			over: 3 * block, over90: 13 * block,
		},
		"released": {
			do: func(_ *testing.T, a *space, _ *int64) { a.reserve(3 * block); a.spend(2 * block); a.release(block) }, partial: 2 * block,
			over: 2 * block, over90: 12 * block,
		},
		"committed": {do: func(t *testing.T, a *space, blobs *int64) {
			t.Helper()
			a.reserve(2 * block)
			a.spend(2 * block)
			if err := a.commit(2*block, func() error { *blobs += 2 * block; return nil }); err != nil {
				t.Error(err)
			}
		}, blobs: 2 * block, over: 2 * block, over90: 12 * block},
		"not committed": {do: func(t *testing.T, a *space, _ *int64) {
			t.Helper()
			a.grow(2 * block)
			if err := a.commit(2*block, func() error { return errDisk }); !errors.Is(err, errDisk) {
				t.Error(err)
			}
		}, over90: 10 * block},
		"broken off, then removed": {do: func(_ *testing.T, a *space, _ *int64) { a.grow(block); a.grow(-block) }, over90: 10 * block},
		"damaged": {
			do: func(_ *testing.T, a *space, _ *int64) { a.setQuarantined(9 * block); a.setQuarantined(4 * block) }, quarantined: 4 * block,
			over: 4 * block, over90: 14 * block,
		},
		"a full disk": {
			free: 150*block + index.Floor, do: func(_ *testing.T, a *space, _ *int64) { a.reserve(60 * block) }, reserved: 60 * block,
			over: 60 * block, over90: 70 * block,
		},
		"a full disk, no limit": {
			free: 150*block + index.Floor, unlimited: true, do: func(_ *testing.T, a *space, _ *int64) { a.reserve(60 * block) }, reserved: 60 * block,
			over: 10 * block, over90: 10 * block,
		},
		"free space for others": {
			free: index.Floor * 3, minFree: index.Floor * 3, unlimited: true, do: func(*testing.T, *space, *int64) {},
			over: limit, over90: limit + 3*index.Floor/10,
		},
		"free space not known": {freeErr: errDisk, do: func(_ *testing.T, a *space, _ *int64) { a.reserve(block) }, reserved: block, over: block, over90: 11 * block},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var blobs int64
			free := tc.free
			if free == 0 {
				free = 1 << 40
			}
			a := &space{
				maxSize: limit, minFree: tc.minFree, blobs: func() int64 { return blobs },
				free:    func() (int64, int64, error) { return free, 1 << 40, tc.freeErr },
				metrics: NewMetrics(), log: slog.New(slog.DiscardHandler),
			}
			if tc.unlimited {
				a.maxSize = 0
			}
			tc.do(t, a, &blobs)
			partial, reserved, quarantined := a.state()
			if blobs != tc.blobs || partial != tc.partial || reserved != tc.reserved || quarantined != tc.quarantined {
				t.Errorf("%d of blobs, %d partial, %d reserved, %d in quarantine", blobs, partial, reserved, quarantined)
			}
			if over, over90 := a.over(limit, 100), a.over(limit, 90); over != tc.over || over90 != tc.over90 {
				t.Errorf("over by %d, want %d; at 90 percent %d, want %d", over, tc.over, over90, tc.over90)
			}
		})
	}
}
