package proxy

import (
	"strings"
	"sync"

	"github.com/hashicorp/golang-lru/v2/simplelru"

	"github.com/cachalot-registry/cachalot/storage"
)

const (
	// maxSuspects bounds the suspect names, repositories and upstreams.
	maxSuspects = 8192
	// maxProbes bounds the probes of an upstream that are not slow yet, and maxChecks all
	// its probes.
	maxProbes = 4
	maxChecks = 16
)

// suspicion says which names are suspect: their checks have failed, so they are served
// without a check, and probed in the background. A failed check makes its name, repository
// and upstream suspect. A check that works clears its own name, repository and upstream.
// Another name that still fails stays suspect alone, so that one bad name does not stop the
// checks of others: see fails.
type suspicion struct {
	mu       sync.Mutex                       // guards all below
	suspects *simplelru.LRU[string, struct{}] // names, repositories, upstreams
	checking map[string]map[string]bool       // by upstream: names whose probe is running; true: it has a slot
}

func newSuspicion() (*suspicion, error) {
	suspects, err := simplelru.NewLRU[string, struct{}](maxSuspects, nil)
	if err != nil {
		return nil, err
	}
	return &suspicion{suspects: suspects, checking: map[string]map[string]bool{}}, nil
}

// places returns the keys of a name, its repository and its upstream. Keys of different
// kinds are never equal.
func places(k storage.TagKey) [3]string {
	return [3]string{
		strings.Join([]string{k.Upstream, k.Repository, k.Name}, "\x00"),
		k.Upstream + "\x00" + k.Repository,
		k.Upstream,
	}
}

// doubts reports whether a name is suspect: it, its repository or its upstream.
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

// doubtsUpstream reports whether an upstream is suspect.
func (s *suspicion) doubtsUpstream(name string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.suspects.Contains(name)
}

// fails records that a check of a name has failed, or takes too long. The name becomes
// suspect, then its repository, then its upstream; it stops at the first one that is suspect
// already. It reports whether the upstream has become suspect.
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

// works records that a check of a name was answered: name, repository and upstream are not
// suspect any more. It reports whether the upstream was.
func (s *suspicion) works(k storage.TagKey) (upstream bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, place := range places(k) {
		upstream = s.suspects.Remove(place)
	}
	return upstream
}

// begin takes a slot for a probe of a name; false: one is running, or too many are.
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

// slow frees the slot of a slow probe for another name. The probe's own name stays suspect.
func (s *suspicion) slow(k storage.TagKey) {
	s.mu.Lock()
	defer s.mu.Unlock()
	name := places(k)[0]
	if names := s.checking[k.Upstream]; names[name] { // otherwise the probe has just ended
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
