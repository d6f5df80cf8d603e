package admin

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cachalot-registry/cachalot/proxy"
	"github.com/cachalot-registry/cachalot/storage"
)

// Pin is a pattern of repositories that are pinned at run time.
type Pin struct {
	Pattern string    `json:"match"` // as in [proxy.Rule]
	Created time.Time `json:"created"`
	Comment string    `json:"comment,omitempty"`
}

// matches reports whether the pin's pattern matches a repository.
func (p Pin) matches(upstream, repository string) bool {
	return proxy.PinMatches(p.Pattern, upstream, repository)
}

const (
	// mostPins bounds the patterns that an eviction compares with each blob's repositories.
	mostPins = 1000
	// maxPinFile is above the size of a file with mostPins of the longest pins.
	maxPinFile = 4 << 20
)

// errTooManyPins: unpin some first.
var errTooManyPins = fmt.Errorf("more than %d pins", mostPins)

// Pins has the pinned repositories: those of the configuration's rules, and those of patterns
// that are added at run time and stored in a file.
type Pins struct {
	file string

	patterns atomic.Pointer[[]Pin] // sorted; what it points to never changes

	mu    sync.Mutex // held while patterns and their file change; guards the fields below
	rules func(upstream, repository string) bool
	tell  func(pinned func(upstream, repository string) bool)
}

// OpenPins reads the pins of earlier runs. It renames a file that it cannot read: the mirror
// starts in any case.
func OpenPins(file string, log *slog.Logger) *Pins {
	p := &Pins{file: file, tell: func(func(upstream, repository string) bool) {}}
	pins, err := p.read()
	if err != nil {
		aside := file + ".damaged"
		log.Error("cannot read run-time pins; only pins of the configuration apply; pin again", "moved_to", aside, "error", err)
		if err := os.Rename(file, aside); err != nil {
			log.Warn("cannot rename the unreadable file of pins", "error", err)
		}
	}
	p.patterns.Store(&pins)
	return p
}

// SetRules sets the function that reports what the configuration pins; nil: nothing.
func (p *Pins) SetRules(rules func(upstream, repository string) bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.rules = rules
	p.tell(p.pinned())
}

// Tell calls set with the function that reports what is pinned, now and after each change.
func (p *Pins) Tell(set func(pinned func(upstream, repository string) bool)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.tell = set
	p.tell(p.pinned())
}

// Pinned returns a function that reports whether a repository is pinned; nil: none is.
func (p *Pins) Pinned() func(upstream, repository string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.pinned()
}

// pinned is Pinned; p.mu is held.
func (p *Pins) pinned() func(upstream, repository string) bool {
	rules, patterns := p.rules, p.list()
	if len(patterns) == 0 {
		return rules
	}
	return func(upstream, repository string) bool {
		return rules != nil && rules(upstream, repository) || slices.ContainsFunc(patterns, func(one Pin) bool {
			return one.matches(upstream, repository)
		})
	}
}

// list returns the run-time pins, sorted. They must not be changed.
func (p *Pins) list() []Pin { return *p.patterns.Load() }

// has reports whether a pattern is among the run-time pins.
func (p *Pins) has(pattern string) bool {
	_, found := search(p.list(), pattern)
	return found
}

// add stores a pin. It applies from the next eviction on, and after restarts. add returns the
// pin of that pattern; added is false if there was one already.
func (p *Pins) add(one Pin) (pin Pin, added bool, err error) {
	pin = one
	err = p.change(func(pins []Pin) ([]Pin, error) {
		i, found := search(pins, one.Pattern)
		switch {
		case found:
			pin = pins[i]
			return pins, nil
		case len(pins) >= mostPins:
			return nil, errTooManyPins
		}
		added = true
		return slices.Insert(slices.Clone(pins), i, one), nil
	})
	return pin, added, err
}

// remove removes the pin of a pattern; removed is false if there was none.
func (p *Pins) remove(pattern string) (removed bool, err error) {
	err = p.change(func(pins []Pin) ([]Pin, error) {
		i, found := search(pins, pattern)
		if !found {
			return pins, nil
		}
		removed = true
		return slices.Delete(slices.Clone(pins), i, i+1), nil
	})
	return removed, err
}

// search returns the index of a pattern in pins, or where it would be.
func search(pins []Pin, pattern string) (i int, found bool) {
	return slices.BinarySearchFunc(pins, pattern, byPattern)
}

func byPattern(p Pin, pattern string) int { return strings.Compare(p.Pattern, pattern) }

// change stores the pins that the given function returns, and then tells what is pinned.
func (p *Pins) change(change func([]Pin) ([]Pin, error)) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	before := p.list()
	after, err := change(before)
	if err != nil || len(after) == len(before) {
		return err
	}
	if err := p.write(after); err != nil {
		return fmt.Errorf("keep pins: %w", err)
	}
	p.patterns.Store(&after)
	p.tell(p.pinned())
	return nil
}

// pinFile is the content of the file.
type pinFile struct {
	Version int   `json:"version"`
	Pins    []Pin `json:"pins"`
}

func (p *Pins) read() ([]Pin, error) {
	f, err := os.Open(p.file)
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

func (p *Pins) write(pins []Pin) error {
	b, err := json.MarshalIndent(pinFile{1, pins}, "", "  ")
	if err != nil {
		return err
	}
	return storage.WriteFile(p.file, append(b, '\n'))
}
