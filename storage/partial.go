package storage

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
)

// partial names a file in fills/ that a download is writing, or has left: an upstream's
// unverified bytes of a digest. Only a download from the same upstream resumes it.
type partial struct {
	digest digest.Digest
	origin string // for the upstream's name: see originName
}

func partialOf(d digest.Digest, upstream string) partial { return partial{d, originName(upstream)} }

// originName is a hash of an upstream's name, for file names: the name itself may be too
// long, and may have colons.
func originName(upstream string) string {
	sum := sha256.Sum256([]byte(upstream))
	return hex.EncodeToString(sum[:8])
}

func (p partial) name() string { return flatName(p.digest) + "." + p.origin }

func (k disk) partial(p partial) string { return filepath.Join(k.fills(), p.name()) }

// partials calls visit for each partial. It removes files without an upstream, which
// earlier versions have left.
func (k disk) partials(visit func(partial, fs.FileInfo)) error {
	entries, err := os.ReadDir(k.fills())
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		flat, origin, known := strings.Cut(e.Name(), ".")
		d, ok := digestOf(flat)
		switch {
		case !ok:
		case !known:
			errs = append(errs, os.Remove(filepath.Join(k.fills(), e.Name())))
		default:
			if info, err := e.Info(); err == nil {
				visit(partial{d, origin}, info)
			}
		}
	}
	return errors.Join(errs...)
}

// eachPartial is disk.partials; it logs an error.
func (s *Store) eachPartial(visit func(partial, fs.FileInfo)) {
	if err := s.disk.partials(visit); err != nil {
		s.log.Warn("cannot list partial downloads", "error", err)
	}
}

// removePartial removes a partial. Readers that have the file open keep it.
func (s *Store) removePartial(p partial) {
	name := s.disk.partial(p)
	info, err := os.Stat(name)
	if err == nil {
		err = os.Remove(name)
	}
	switch {
	case err == nil:
		s.space.grow(-blocks(info.Size()))
	case !errors.Is(err, fs.ErrNotExist):
		s.log.Warn("cannot remove partial download", "digest", p.digest, "error", err)
	}
}

// idlePartials returns the disk space of broken downloads.
func (s *Store) idlePartials() (bytes int64) {
	s.eachPartial(func(p partial, info fs.FileInfo) {
		if !s.gate.writing(p) {
			bytes += blocks(info.Size())
		}
	})
	return bytes
}

// idlePartialsOf returns the partials that broken downloads have left of a digest.
func (s *Store) idlePartialsOf(d digest.Digest) (left []partial) {
	entries, err := os.ReadDir(s.disk.fills())
	if err != nil {
		s.log.Warn("cannot list partial downloads", "error", err)
	}
	for _, e := range entries { // names alone, because a purge calls this for each digest
		origin, ok := strings.CutPrefix(e.Name(), flatName(d)+".")
		if p := (partial{d, origin}); ok && !s.gate.writing(p) {
			left = append(left, p)
		}
	}
	return left
}

// dropPartials removes broken downloads that have not been resumed for age.
func (s *Store) dropPartials(age time.Duration) {
	s.eachPartial(func(p partial, info fs.FileInfo) {
		if time.Since(info.ModTime()) < age {
			return
		}
		s.gate.exclusivePartial(p, func() { s.removePartial(p) })
	})
}
