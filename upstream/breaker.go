package upstream

import (
	"errors"
	"fmt"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"github.com/sony/gobreaker/v2"
)

const (
	// A breaker opens after breakerFailures in a row, and allows one trial request after
	// breakerPause. The pause is short because a person's build waits for it.
	breakerFailures = 5
	breakerPause    = 5 * time.Second
	// maxOrigins bounds the origins known; redirects can name any number of hosts.
	maxOrigins = 256
	// maxParts bounds the repositories and objects known.
	maxParts = 8192
)

// errNotAsked: a breaker is open.
var errNotAsked = fmt.Errorf("%w: not asked: it failed %d times in a row", ErrUnavailable, breakerFailures)

// errIgnored: the breaker does not count this outcome.
var errIgnored = errors.New("not counted")

type breaker = gobreaker.TwoStepCircuitBreaker[struct{}]

// breakers stop requests for an object, a repository or an origin for a while. An object
// that fails counts against its repository only once, until it has succeeded, and a
// repository against its origin only once: one bad object does not stop the others, however
// often it is requested. A request that does not reach the origin counts against the origin
// each time.
type breakers struct {
	origins *lru.Cache[string, *breaker] // by origin
	parts   *lru.Cache[string, *breaker] // by repository of an origin, and by object of that
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

// outcome is the result of a request, for the breakers.
type outcome int

const (
	succeeded    outcome = iota
	ignored              // it says nothing about the origin or the object
	failedObject         // status 5xx (not 501), or no response after the request was sent
	failedOrigin         // the origin could not be reached
)

// origin returns an origin's breaker; known reports whether it existed before.
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

// allow reports whether an object of a repository may be requested. If so, done must be
// called with the outcome.
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
				if known { // already counted against the repository or origin
					o = ignored
				}
			}
		}
	}, true
}
