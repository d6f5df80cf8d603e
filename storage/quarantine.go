package storage

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"syscall"

	"github.com/opencontainers/go-digest"
)

const (
	// quarantineShare: quarantine/ may hold a tenth of what blobs may, so that
	// what is to be looked at costs few that are to be served.
	quarantineShare = 10
	// quarantineFiles bounds how many files are looked at each minute.
	quarantineFiles = 64
	// maxSuspects bounds the memory of what is to be read again; the scrub comes
	// to the others.
	maxSuspects = 1000
)

// quarantine moves a damaged blob into quarantine and forgets it, so that it is
// fetched again. bad says what is wrong with it, while no other caller can open, fill or
// remove the digest; nil leaves it. Who has the file open keeps it.
func (h *health) quarantine(d digest.Digest, bad func() error) {
	h.blobs.exclusive(d, func() { h.tryQuarantine(d, bad) })
	h.updateQuarantine()
}

// quarantineFile is quarantine of a file that was read, unless the digest has another by now.
func (h *health) quarantineFile(d digest.Digest, bad damage) {
	h.quarantine(d, func() error { return bad.still(h.disk.blob(d)) })
}

// tryQuarantine is quarantine, while no other caller can have the digest. Where the file
// can be neither moved nor removed it is condemned: passed over from now on.
func (h *health) tryQuarantine(d digest.Digest, bad func() error) {
	why := bad()
	if why == nil {
		h.clear(d)
		return
	}
	into := h.disk.quarantined(d)
	err := h.disk.moveToQuarantine(d)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		h.log.Warn("cannot quarantine damaged blob; removing it", "digest", d, "error", err)
		into = ""
		if err = os.Remove(h.disk.blob(d)); err == nil {
			h.metrics.quarantined.Inc()
		}
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		h.log.Error("cannot quarantine or remove damaged blob; it is condemned, and each request downloads it", "digest", d, "damage", why, "error", err)
		h.condemn(d, bad)
		return
	}
	h.log.Error("blob damaged on disk; the next request downloads it", "digest", d, "damage", why, "quarantine", into)
	h.clear(d)
	h.blobs.forget(d)
}

// updateQuarantine forgets the blobs that another process put into quarantine (as
// Verify does), counts what is there, and removes the oldest that are too much.
func (h *health) updateQuarantine() {
	h.listing.Lock()
	defer h.listing.Unlock()
	type file struct {
		digest digest.Digest
		info   fs.FileInfo
	}
	var files []file
	if err := flat(h.disk.quarantine(), func(d digest.Digest, info fs.FileInfo) { files = append(files, file{d, info}) }); err != nil {
		h.log.Warn("cannot list quarantine", "error", err)
		return
	}
	slices.SortFunc(files, func(a, b file) int { return cmp.Compare(movedAt(b.info), movedAt(a.info)) })
	first := h.listed == nil
	known := h.listed
	h.listed = make(map[digest.Digest]fs.FileInfo, len(files))
	var bytes int64
	for i, f := range files {
		if !first && (known[f.digest] == nil || !os.SameFile(known[f.digest], f.info)) {
			h.metrics.quarantined.Inc()
		}
		if _, ok, err := h.ledger.index.Record(f.digest); err == nil && ok && !h.disk.has(f.digest) {
			h.blobs.exclusiveIdle(f.digest, func() {
				h.log.Warn("another process quarantined the blob; the next request downloads it", "digest", f.digest)
				h.blobs.forget(f.digest)
			})
		}
		if i >= quarantineFiles || bytes+blocks(f.info.Size()) > h.quarantineMax {
			if err := os.Remove(h.disk.quarantined(f.digest)); err == nil {
				h.log.Warn("quarantine is full; removed its oldest blob", "digest", f.digest, "bytes", f.info.Size(), "max_bytes", h.quarantineMax)
				continue
			}
		}
		h.listed[f.digest] = f.info
		bytes += blocks(f.info.Size())
	}
	h.space.setQuarantined(bytes)
}

// movedAt is when a file got its name, in nanoseconds.
func movedAt(info fs.FileInfo) int64 {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return st.Ctim.Nano()
	}
	return info.ModTime().UnixNano()
}

// wrongSize says what is wrong with the length of a digest's file; want is -1
// where it is not known.
func wrongSize(d digest.Digest, size, want int64) error {
	switch {
	case want >= 0 && size != want:
		return fmt.Errorf("%w: file has %d bytes, blob has %d", ErrDigest, size, want)
	case size == 0 && d != d.Algorithm().FromBytes(nil):
		return fmt.Errorf("%w: file is empty", ErrDigest)
	}
	return nil
}

// badSize is for quarantine: the file's length is not what the record says, or what
// its link does where it has no record.
func (h *health) badSize(d digest.Digest, linked int64) func() error {
	return func() error {
		info, err := os.Lstat(h.disk.blob(d))
		if err != nil {
			return nil //nolint:nilerr // nothing to put away
		}
		return wrongSize(d, info.Size(), h.ledger.size(d, linked))
	}
}

// broken is [Blob.Broken] of a blob on disk.
func (h *health) broken(f *os.File, d digest.Digest) {
	info, err := f.Stat()
	if err != nil {
		return
	}
	bad := damage{file: info, why: wrongSize(d, info.Size(), h.ledger.size(d, -1))}
	if _, err := f.Read(make([]byte, chunk)); err != nil && !errors.Is(err, io.EOF) {
		bad.why = fmt.Errorf("read blob: %w", pathless(err))
	}
	if bad.why == nil {
		h.suspect(d)
		return
	}
	h.quarantineFile(d, bad)
}

// unreadable says that an error is the disk's, not the process's or the file's
// absence: the inode cannot be read, or is garbage to the file system.
func unreadable(err error) bool {
	return errors.Is(err, syscall.EIO) || errors.Is(err, syscall.EUCLEAN) || errors.Is(err, syscall.EBADMSG)
}

// unopenable is for quarantine: the file cannot be opened for the disk's sake.
func (h *health) unopenable(d digest.Digest) func() error {
	return func() error {
		f, err := os.Open(h.disk.blob(d))
		if err == nil {
			_ = f.Close() // not read
		}
		if !unreadable(err) {
			return nil
		}
		return fmt.Errorf("open blob: %w", pathless(err))
	}
}
