package storage

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"slices"
	"syscall"

	"github.com/opencontainers/go-digest"

	"github.com/cachalot-registry/cachalot/storage/index"
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
// fetched anew. bad says what is wrong with it, while nobody can open, fill or
// remove the digest; nil leaves it. Who has the file open keeps it.
func (s *Store) quarantine(d digest.Digest, bad func() error) {
	s.alone(d, func() { s.tryQuarantine(d, bad) })
	s.tendQuarantine()
}

// quarantineFile is quarantine of a file that was read, unless the digest has another by now.
func (s *Store) quarantineFile(d digest.Digest, bad damage) {
	s.quarantine(d, func() error { return bad.still(s.disk.blob(d)) })
}

// tryQuarantine is quarantine, while no other caller can have the digest. Where the file
// can be neither moved nor removed it is condemned: passed over from now on.
func (s *Store) tryQuarantine(d digest.Digest, bad func() error) {
	why := bad()
	if why == nil {
		s.clear(d)
		return
	}
	into := s.disk.quarantined(d)
	err := s.disk.moveToQuarantine(d)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		s.log.Warn("cannot quarantine damaged blob, so it is removed", "digest", d, "error", err)
		into = ""
		if err = os.Remove(s.disk.blob(d)); err == nil {
			s.metrics.quarantined.Inc()
		}
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		s.log.Error("damaged blob can be neither moved nor removed: fetched at each request", "digest", d, "damage", why, "error", err)
		s.mu.Lock()
		s.condemned[d] = bad
		s.mu.Unlock()
		return
	}
	s.log.Error("blob damaged on disk: fetched anew when it is asked for", "digest", d, "damage", why, "quarantine", into)
	s.clear(d)
	s.forget(d)
}

// clear says that the digest's file, if it has one, may be served.
func (s *Store) clear(d digest.Digest) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.condemned, d)
}

// tendQuarantine forgets the blobs that somebody else put into quarantine (as
// Verify does), counts what is there, and removes the oldest that are too much.
func (s *Store) tendQuarantine() {
	s.quarantining.Lock()
	defer s.quarantining.Unlock()
	type file struct {
		digest digest.Digest
		info   fs.FileInfo
	}
	var files []file
	if err := flat(s.disk.quarantine(), func(d digest.Digest, info fs.FileInfo) { files = append(files, file{d, info}) }); err != nil {
		s.log.Warn("cannot list quarantine", "error", err)
		return
	}
	slices.SortFunc(files, func(a, b file) int { return cmp.Compare(movedAt(b.info), movedAt(a.info)) })
	first := s.inQuarantine == nil
	known := s.inQuarantine
	s.inQuarantine = make(map[digest.Digest]fs.FileInfo, len(files))
	var bytes int64
	for i, f := range files {
		if !first && (known[f.digest] == nil || !os.SameFile(known[f.digest], f.info)) {
			s.metrics.quarantined.Inc()
		}
		if _, ok, err := s.index.Record(f.digest); err == nil && ok && !s.exists(f.digest) {
			s.whileIdle(f.digest, func() {
				s.log.Warn("somebody has put a blob into quarantine: fetched anew when it is asked for", "digest", f.digest)
				s.forget(f.digest)
			})
		}
		if i >= quarantineFiles || bytes+blocks(f.info.Size()) > s.quarantineMax {
			if err := os.Remove(s.disk.quarantined(f.digest)); err == nil {
				s.log.Warn("removed from quarantine, which is full", "digest", f.digest, "bytes", f.info.Size(), "max_bytes", s.quarantineMax)
				continue
			}
		}
		s.inQuarantine[f.digest] = f.info
		bytes += blocks(f.info.Size())
	}
	s.quarantined.Store(bytes)
	s.metrics.quarantineBytes.Set(float64(bytes))
}

// movedAt is when a file got its name, in nanoseconds.
func movedAt(info fs.FileInfo) int64 {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return st.Ctim.Nano()
	}
	return info.ModTime().UnixNano()
}

// retryCondemned tries once more to move what could not be moved.
func (s *Store) retryCondemned() {
	s.mu.Lock()
	condemned := maps.Clone(s.condemned)
	s.mu.Unlock()
	for d, bad := range condemned {
		s.quarantine(d, bad)
	}
}

// wrongSize says what is wrong with the length of a digest's file; want is -1
// where it is not known.
func wrongSize(d digest.Digest, size, want int64) error {
	switch {
	case want >= 0 && size != want:
		return fmt.Errorf("%w: the file has %d bytes, the blob %d", ErrDigest, size, want)
	case size == 0 && d != d.Algorithm().FromBytes(nil):
		return fmt.Errorf("%w: the file is empty", ErrDigest)
	}
	return nil
}

// badSize is for quarantine: the file's length is not what the record says, or what
// its link does where it has no record.
func (s *Store) badSize(d digest.Digest, linked int64) func() error {
	return func() error {
		info, err := os.Lstat(s.disk.blob(d))
		if err != nil {
			return nil //nolint:nilerr // nothing to put away
		}
		return wrongSize(d, info.Size(), s.size(d, linked))
	}
}

// size is how long a blob is by its record, and by its link where it has none.
func (s *Store) size(d digest.Digest, linked int64) int64 {
	if r, ok, err := s.index.Record(d); err == nil && ok {
		return r.Size
	}
	return linked
}

// fits says whether a file is as long as its blob. Only where the link does not
// say so, or says something else, is the record read.
func (s *Store) fits(sc Scope, d digest.Digest, l index.Link, size int64) bool {
	if l.Size == size && size > 0 {
		return true
	}
	want := s.size(d, l.Size)
	if wrongSize(d, size, want) != nil {
		return false
	}
	if want >= 0 && l.Size != want { // it was made before the record, or is of an earlier, damaged file
		if err := s.PutLink(sc, d, l.MediaType); err != nil {
			s.log.Warn("cannot record link", "digest", d, "error", err)
		}
		if l.Size >= 0 {
			s.suspect(d)
		}
	}
	return true
}

// broken is [Blob.Broken] of a blob on disk.
func (s *Store) broken(f *os.File, d digest.Digest) {
	info, err := f.Stat()
	if err != nil {
		return
	}
	bad := damage{file: info, why: wrongSize(d, info.Size(), s.size(d, -1))}
	if _, err := f.Read(make([]byte, chunk)); err != nil && !errors.Is(err, io.EOF) {
		bad.why = fmt.Errorf("read blob: %w", pathless(err))
	}
	if bad.why == nil {
		s.suspect(d)
		return
	}
	s.quarantineFile(d, bad)
}

// unreadable says that an error is the disk's, not the process's or the file's
// absence: the inode cannot be read, or is garbage to the file system.
func unreadable(err error) bool {
	return errors.Is(err, syscall.EIO) || errors.Is(err, syscall.EUCLEAN) || errors.Is(err, syscall.EBADMSG)
}

// unopenable is for quarantine: the file cannot be opened for the disk's sake.
func (s *Store) unopenable(d digest.Digest) func() error {
	return func() error {
		f, err := os.Open(s.disk.blob(d))
		if err == nil {
			_ = f.Close() // not read
		}
		if !unreadable(err) {
			return nil
		}
		return fmt.Errorf("open blob: %w", pathless(err))
	}
}

// suspect has a blob read again soon.
func (s *Store) suspect(d digest.Digest) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.suspects) < maxSuspects {
		s.suspects[d] = struct{}{}
	}
	select {
	case s.suspected <- struct{}{}:
	default: // somebody has said so
	}
}
