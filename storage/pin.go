package storage

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/cachalot-registry/cachalot/storage/index"
)

// Pin is a pattern of repositories that are pinned at run time, besides those that
// [Store.SetPinned] names. What a pattern is, [Config.PinFits] says.
type Pin struct {
	Pattern string    `json:"match"`
	Created time.Time `json:"created"`
	Comment string    `json:"comment,omitempty"`
}

const (
	// mostPins bounds what an eviction compares each blob's places with.
	mostPins = 1000
	// maxPinFile is above that many of the longest.
	maxPinFile = 4 << 20
)

// ErrTooManyPins: unpin some first.
var ErrTooManyPins = fmt.Errorf("more than %d pins", mostPins)

// SetPinned changes what says which repositories are pinned; nil: none is. What
// has a link from one of them is neither evicted nor dropped when its time is
// over, from the next eviction on. It is called from many goroutines.
func (s *Store) SetPinned(pinned func(upstream, repository string) bool) {
	if pinned == nil {
		s.pins.Store(nil)
		return
	}
	s.pins.Store(&pinned)
}

// isPinned says whether a blob has a link from a pinned repository. Where that
// cannot be read it has.
func (s *Store) isPinned(d digest.Digest) bool {
	if s.pins.Load() == nil && len(s.Pins()) == 0 {
		return false
	}
	found := false
	err := s.index.Links(d, func(at index.LinkAt) bool {
		found = s.Pinned(string(at.Upstream()), string(at.Repository()))
		return !found
	})
	if err != nil {
		s.log.Warn("cannot read links: taken for pinned", "digest", d, "error", err)
		return true
	}
	return found
}

// Pinned says whether a repository is pinned, by [Store.SetPinned] or at run time.
func (s *Store) Pinned(upstream, repository string) bool {
	if pinned := s.pins.Load(); pinned != nil && (*pinned)(upstream, repository) {
		return true
	}
	return slices.ContainsFunc(s.Pins(), func(p Pin) bool {
		return s.pinFits != nil && s.pinFits(p.Pattern, upstream, repository)
	})
}

// Pins are those of run time, in the order of their patterns. They must not be
// changed.
func (s *Store) Pins() []Pin {
	if pins := s.pinned.Load(); pins != nil {
		return *pins
	}
	return nil
}

// Pin pins the repositories that a pattern is of, from the next eviction on, and
// over restarts. added is false where that was so already.
func (s *Store) Pin(p Pin) (added bool, err error) {
	err = s.changePins(func(pins []Pin) ([]Pin, error) {
		i, found := slices.BinarySearchFunc(pins, p.Pattern, byPattern)
		switch {
		case found:
			return pins, nil
		case len(pins) >= mostPins:
			return nil, ErrTooManyPins
		}
		added = true
		return slices.Insert(slices.Clone(pins), i, p), nil
	})
	return added, err
}

// Unpin takes a pattern off; removed is false where it was none.
func (s *Store) Unpin(pattern string) (removed bool, err error) {
	err = s.changePins(func(pins []Pin) ([]Pin, error) {
		i, found := slices.BinarySearchFunc(pins, pattern, byPattern)
		if !found {
			return pins, nil
		}
		removed = true
		return slices.Delete(slices.Clone(pins), i, i+1), nil
	})
	return removed, err
}

func byPattern(p Pin, pattern string) int {
	switch {
	case p.Pattern < pattern:
		return -1
	case p.Pattern > pattern:
		return 1
	}
	return 0
}

// changePins writes what change makes of the pins, and then goes by it.
func (s *Store) changePins(change func([]Pin) ([]Pin, error)) error {
	s.pinning.Lock()
	defer s.pinning.Unlock()
	before := s.Pins()
	after, err := change(before)
	if err != nil || len(after) == len(before) {
		return err
	}
	if err := s.disk.writePins(after); err != nil {
		return fmt.Errorf("keep pins: %w", err)
	}
	s.pinned.Store(&after)
	return nil
}

// loadPins reads the pins of earlier runs. A file that makes no sense is put aside:
// the store starts in any case.
func (s *Store) loadPins() {
	pins, err := s.disk.readPins()
	if err != nil {
		aside := s.disk.pins() + ".damaged"
		s.log.Error("cannot read pins: nothing is pinned but by configuration; pin it again", "put_aside", aside, "error", err)
		if err := os.Rename(s.disk.pins(), aside); err != nil {
			s.log.Warn("cannot put the file of pins aside", "error", err)
		}
		return
	}
	s.pinned.Store(&pins)
}

// pinFile is what stands in the file of pins.
type pinFile struct {
	Version int   `json:"version"`
	Pins    []Pin `json:"pins"`
}

func (k disk) readPins() ([]Pin, error) {
	f, err := os.Open(k.pins())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	b, err := io.ReadAll(io.LimitReader(f, maxPinFile))
	if err != nil {
		return nil, err
	}
	var kept pinFile
	if err := json.Unmarshal(b, &kept); err != nil {
		return nil, err
	}
	if kept.Version != 1 || len(kept.Pins) > mostPins {
		return nil, fmt.Errorf("version %d with %d pins", kept.Version, len(kept.Pins))
	}
	slices.SortFunc(kept.Pins, func(a, b Pin) int { return byPattern(a, b.Pattern) })
	return kept.Pins, nil
}

// writePins replaces the file.
func (k disk) writePins(pins []Pin) error {
	b, err := json.MarshalIndent(pinFile{1, pins}, "", "  ")
	if err != nil {
		return err
	}
	f, err := os.OpenFile(k.pins()+".new", os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	named := false
	_, err = f.Write(append(b, '\n'))
	if err == nil {
		named, err = nameDurably(f, k.pins())
	}
	err = errors.Join(err, f.Close())
	if err != nil && !named {
		err = errors.Join(err, os.Remove(f.Name()))
	}
	return err
}
