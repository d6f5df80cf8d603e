package storage

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"

	"github.com/cachalot-registry/cachalot/task"
)

// Verification is what [Verify] found.
type Verification struct {
	Blobs   int   // read
	Bytes   int64 // read
	Damaged []Damage
}

// Damage is a blob whose file does not match its name.
type Damage struct {
	Digest     digest.Digest
	Size       int64 // of the file
	Reason     string
	Quarantine string // the file's path now; "": it was not moved
}

// Verify reads each blob below path, the folder of a [Store], and compares its digest.
// Unless dryRun, it quarantines damaged blobs. It needs no lock: a Store on the same folder
// finds the file gone, and drops its record within a minute or at its next start. Verify
// calls progress with the bytes of each piece read, and the bytes that all blobs had at the
// start; one call at a time.
//
// An error means that not all blobs could be checked or quarantined; the Verification has
// what was found.
func Verify(ctx context.Context, path string, dryRun bool, progress func(read, all int64)) (Verification, error) {
	k := disk{root: path}
	var v Verification
	if _, err := os.ReadDir(filepath.Join(path, "blobs")); err != nil {
		return v, fmt.Errorf("list blobs: %w", err)
	}
	var all int64
	k.blobs(func(_ digest.Digest, info fs.FileInfo) bool { all += info.Size(); return ctx.Err() == nil })

	var mu sync.Mutex // guards v, failed, and progress
	var failed []error
	count := func(ctx context.Context, n int) error {
		mu.Lock()
		defer mu.Unlock()
		progress(int64(n), all)
		return ctx.Err()
	}
	var readers errgroup.Group
	readers.SetLimit(max(1, runtime.GOMAXPROCS(0)/2)) // leaves processors to a running mirror
	for d, err := range k.after("") {
		if ctx.Err() != nil {
			break
		}
		if err != nil {
			mu.Lock()
			failed = append(failed, err)
			mu.Unlock()
			continue
		}
		readers.Go(func() error {
			var read int64
			var bad *damage
			err := task.Try("verification", func() (err error) { read, bad, err = k.check(ctx, d, count); return err })
			var found Damage
			if bad != nil {
				found = Damage{Digest: d, Size: bad.file.Size(), Reason: bad.why.Error()}
				if !dryRun {
					found.Quarantine, err = k.setAside(d, bad)
				}
			}
			mu.Lock()
			defer mu.Unlock()
			switch {
			case errors.Is(err, fs.ErrNotExist), ctx.Err() != nil && bad == nil: // evicted, or found by the mirror
				return nil
			case err != nil:
				failed = append(failed, fmt.Errorf("%s: %w", d, err))
			}
			if err == nil || bad != nil {
				v.Blobs++
				v.Bytes += read
			}
			if bad != nil {
				v.Damaged = append(v.Damaged, found)
			}
			return nil
		})
	}
	_ = readers.Wait() // errors are in failed
	slices.SortFunc(v.Damaged, func(a, b Damage) int { return cmp.Compare(a.Digest, b.Digest) })
	return v, errors.Join(append(failed, ctx.Err())...)
}

// setAside quarantines a damaged blob, if its file is still the one that was read.
func (k disk) setAside(d digest.Digest, bad *damage) (name string, err error) {
	if bad.still(k.blob(d)) == nil {
		return "", fs.ErrNotExist
	}
	if err := os.MkdirAll(k.quarantine(), 0o700); err != nil {
		return "", err
	}
	if err := k.moveToQuarantine(d); err != nil {
		return "", err
	}
	return k.quarantined(d), nil
}
