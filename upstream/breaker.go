package upstream

import (
	"errors"
	"fmt"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"github.com/sony/gobreaker/v2"
)

const (
	// A breaker opens after breakerFailures in a row and lets one request try
	// again after breakerPause: short, for what waits on it is a person's build.
	breakerFailures = 5
	breakerPause    = 5 * time.Second
	// maxOrigins bounds the origins known; redirects can name any number of hosts.
	maxOrigins = 256
	// maxParts bounds the repositories and objects known.
	maxParts = 8192
)

// errNotAsked: a breaker is open.
var errNotAsked = fmt.Errorf("%w: not asked: it failed %d times in a row", ErrUnavailable, breakerFailures)

// errIgnored tells a breaker that an outcome says nothing of what it stands for.
var errIgnored = errors.New("not counted")

type breaker = gobreaker.TwoStepCircuitBreaker[struct{}]

// breakers say what is not asked for a while: an object, all of a repository, all of
// an origin. An object that fails counts against its repository once, until it has
// succeeded, and a repository against its origin once: one bad object, however
// often it is asked for, does not stop the others. What fails before the
// origin has answered at all counts against the origin each time.
type breakers struct {
	origins *lru.Cache[string, *breaker] // by origin
	parts   *lru.Cache[string, *breaker] // by repository or object there
	changed func(origin string, from, to gobreaker.State)
}

func newBreakers(changed func(origin string, from, to gobreaker.State)) (*breakers, error) {
	origins, err := lru.New[string, *breaker](maxOrigins)
	if err != nil {
		return nil, fmt.Errorf("make breaker cache: %w", err)
	}
	parts, err := lru.New[string, *breaker](maxParts)
	if err != nil {
		return nil, fmt.Errorf("make breaker cache: %w", err)
	}
	return &breakers{origins: origins, parts: parts, changed: changed}, nil
}

// outcome is what became of a request.
type outcome int

const (
	succeeded    outcome = iota
	ignored              // it says nothing of whom was asked
	failedObject         // the origin answered that it cannot, or began no answer in time
	failedOrigin         // it could not be reached
)

// origin is an origin's breaker; known is whether it was there.
func (b *breakers) origin(name string) (br *breaker, known bool) {
	return get(b.origins, name, gobreaker.Settings{Name: name, OnStateChange: b.changed})
}

func (b *breakers) part(name string) *breaker {
	br, _ := get(b.parts, name, gobreaker.Settings{})
	return br
}

func get(cache *lru.Cache[string, *breaker], name string, s gobreaker.Settings) (br *breaker, known bool) {
	if br, ok := cache.Get(name); ok {
		return br, true
	}
	s.Timeout = breakerPause
	s.ReadyToTrip = func(c gobreaker.Counts) bool { return c.ConsecutiveFailures >= breakerFailures }
	s.IsExcluded = func(err error) bool { return errors.Is(err, errIgnored) }
	br = gobreaker.NewTwoStepCircuitBreaker[struct{}](s)
	if before, ok, _ := cache.PeekOrAdd(name, br); ok {
		return before, true
	}
	return br, false
}

// allow asks whether an object of a repository may be asked for. If so, done must be
// called with what became of it.
func (b *breakers) allow(origin, repo, object string) (done func(outcome), allowed bool) {
	whole, _ := b.origin(origin)
	parts := [...]*breaker{b.part(origin + "\x00" + repo + "\x00" + object), b.part(origin + "\x00" + repo), whole}
	var dones [len(parts)]func(error)
	for i, br := range parts {
		d, err := br.Allow()
		if err != nil {
			for _, taken := range dones[:i] {
				taken(errIgnored)
			}
			return nil, false
		}
		dones[i] = d
	}
	return func(o outcome) {
		for i, br := range parts {
			switch {
			case o == succeeded:
				dones[i](nil)
			case o == ignored, o == failedOrigin && br != whole:
				dones[i](errIgnored)
			default:
				known := o == failedObject && (br.State() != gobreaker.StateClosed || br.Counts().ConsecutiveFailures > 0)
				dones[i](errNotAsked)
				if known { // it has been counted against what is larger
					o = ignored
				}
			}
		}
	}, true
}
