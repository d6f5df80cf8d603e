package proxy

import (
	"strings"
	"sync"

	"github.com/hashicorp/golang-lru/v2/simplelru"

	"github.com/cachalot-registry/cachalot/storage"
)

const (
	// maxSuspects bounds the names and repositories under suspicion.
	maxSuspects = 8192
	// maxProbes bounds the probes of an upstream that have not proved slow, and
	// maxChecks all those that no one waits for.
	maxProbes = 4
	maxChecks = 16
)

// suspicion says which names are served unchecked for now, for checks of them have
// failed: that name's, or where it is not known whether they work, those of its
// repository or upstream. A check that works clears all that holds the name, so
// that one bad name keeps no other from being checked: see fails.
type suspicion struct {
	mu       sync.Mutex                       // guards all below
	suspects *simplelru.LRU[string, struct{}] // names, repositories, upstreams
	checking map[string]map[string]bool       // by upstream: names whose probe is under way; true: it has a slot
}

func newSuspicion() (*suspicion, error) {
	suspects, err := simplelru.NewLRU[string, struct{}](maxSuspects, nil)
	if err != nil {
		return nil, err
	}
	return &suspicion{suspects: suspects, checking: map[string]map[string]bool{}}, nil
}

// places are what a name is held by, smallest first. No two kinds can be the same.
func places(k storage.TagKey) [3]string {
	return [3]string{
		strings.Join([]string{k.Upstream, k.Repository, k.Name}, "\x00"),
		k.Upstream + "\x00" + k.Repository,
		k.Upstream,
	}
}

// doubts reports whether a name is to be served unchecked.
func (s *suspicion) doubts(k storage.TagKey) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, place := range places(k) {
		if s.suspects.Contains(place) {
			return true
		}
	}
	return false
}

// doubtsUpstream reports whether nothing of an upstream is known to work.
func (s *suspicion) doubtsUpstream(name string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.suspects.Contains(name)
}

// fails records that a check of a name has failed, or takes too long. What is
// suspected already is no news for what holds it. It reports whether the upstream
// is suspected now, and was not before.
func (s *suspicion) fails(k storage.TagKey) (upstream bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, place := range places(k) {
		if s.suspects.Contains(place) {
			return false
		}
		s.suspects.Add(place, struct{}{})
	}
	return true
}

// works records that a check of a name was answered. It reports whether the upstream
// was suspected before.
func (s *suspicion) works(k storage.TagKey) (upstream bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, place := range places(k) {
		upstream = s.suspects.Remove(place)
	}
	return upstream
}

// begin takes a slot for a probe of a name; false: one is under way, or too many are.
func (s *suspicion) begin(k storage.TagKey) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	names := s.checking[k.Upstream]
	slots := 0
	for _, hasSlot := range names {
		if hasSlot {
			slots++
		}
	}
	name := places(k)[0]
	if _, busy := names[name]; busy || slots >= maxProbes || len(names) >= maxChecks {
		return false
	}
	if names == nil {
		names = map[string]bool{}
		s.checking[k.Upstream] = names
	}
	names[name] = true
	return true
}

// slow gives a probe's slot to another one: its name alone is suspected from now on.
func (s *suspicion) slow(k storage.TagKey) {
	s.mu.Lock()
	defer s.mu.Unlock()
	name := places(k)[0]
	if names := s.checking[k.Upstream]; names[name] { // else it has just ended
		s.suspects.Add(name, struct{}{})
		names[name] = false
	}
}

// end ends a probe.
func (s *suspicion) end(k storage.TagKey) {
	s.mu.Lock()
	defer s.mu.Unlock()
	names := s.checking[k.Upstream]
	if delete(names, places(k)[0]); len(names) == 0 {
		delete(s.checking, k.Upstream)
	}
}
