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
	// quarantine/ may use one quarantineShare-th of the limit of blobs: damaged blobs that
	// wait for inspection must not push out many good ones.
	quarantineShare = 10
	// quarantineFiles bounds how many files are listed each minute.
	quarantineFiles = 64
	// maxSuspects bounds the memory of suspects; the scrub finds the others later.
	maxSuspects = 1000
)

// quarantine moves a damaged blob to quarantine/ and drops its record, so that the next
// request downloads it. bad returns what is wrong with it; it is called while no other caller
// can open, store or remove the digest, and if it returns nil the blob stays. Readers that
// have the file open continue with it.
func (h *health) quarantine(d digest.Digest, bad func() error) {
	h.blobs.exclusive(d, func() { h.tryQuarantine(d, bad) })
	h.updateQuarantine()
}

// quarantineFile is quarantine of a file that was read, unless it has been replaced.
func (h *health) quarantineFile(d digest.Digest, bad damage) {
	h.quarantine(d, func() error { return bad.still(h.disk.blob(d)) })
}

// tryQuarantine is quarantine, while no other caller can have the digest. A file that can
// be neither moved nor removed is condemned: treated as missing.
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

// updateQuarantine drops the records of blobs that another process has quarantined (as
// Verify does), counts the files in quarantine/, and removes the oldest above the limit.
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

// wrongSize returns what is wrong with the length of a digest's file; nil: nothing. want is
// -1 if the length is not known.
func wrongSize(d digest.Digest, size, want int64) error {
	switch {
	case want >= 0 && size != want:
		return fmt.Errorf("%w: file has %d bytes, blob has %d", ErrDigest, size, want)
	case size == 0 && d != d.Algorithm().FromBytes(nil):
		return fmt.Errorf("%w: file is empty", ErrDigest)
	}
	return nil
}

// badSize returns a check for quarantine: the file's length is not that of the record or,
// without a record, that of the link.
func (h *health) badSize(d digest.Digest, linked int64) func() error {
	return func() error {
		info, err := os.Lstat(h.disk.blob(d))
		if err != nil {
			return nil //nolint:nilerr // there is no file to quarantine
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

// unreadable reports whether err is an error of the disk: the inode cannot be read, or the
// file system finds it corrupt. A missing file, or a limit of the process, is none.
func unreadable(err error) bool {
	return errors.Is(err, syscall.EIO) || errors.Is(err, syscall.EUCLEAN) || errors.Is(err, syscall.EBADMSG)
}

// unopenable returns a check for quarantine: an error of the disk prevents opening the file.
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
