package upstream

import (
	"fmt"
	"sync"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
)

const (
	// maxRest bounds a pause: one response may pause all requests to its origin.
	maxRest = 5 * time.Minute
	// restingObjects is how many objects of an origin must pause, with no other response
	// in between, until the whole origin pauses.
	restingObjects = 3
)

// errResting: the object or its origin still pauses, by a Retry-After.
var errResting = fmt.Errorf("%w: not asked: the registry said when to ask again", ErrUnavailable)

// rests are the pauses by Retry-After (RFC 9110 section 10.2.3): of an object, or of an
// origin if the header seems to apply to all of it.
type rests struct {
	mu      sync.Mutex // guards all below
	objects *lru.Cache[string, time.Time]
	origins *lru.Cache[string, *originRest]
}

type originRest struct {
	said  int       // objects that began a pause since the last response without one
	until time.Time // the end of the pause of the whole origin
}

func newRests() (*rests, error) {
	objects, err := lru.New[string, time.Time](maxParts)
	if err != nil {
		return nil, fmt.Errorf("make cache of rests: %w", err)
	}
	origins, err := lru.New[string, *originRest](maxOrigins)
	if err != nil {
		return nil, fmt.Errorf("make cache of rests: %w", err)
	}
	return &rests{objects: objects, origins: origins}, nil
}

// left returns how long an object of an origin still pauses; 0: it may be requested.
func (r *rests) left(origin, object string) time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	until, _ := r.objects.Get(origin + "\x00" + object)
	if o, ok := r.origins.Get(origin); ok && o.until.After(until) {
		until = o.until
	}
	return max(0, time.Until(until))
}

// until returns when the pause of a whole origin ends; zero: there is none.
func (r *rests) until(origin string) time.Time {
	r.mu.Lock()
	defer r.mu.Unlock()
	if o, ok := r.origins.Peek(origin); ok {
		return o.until
	}
	return time.Time{}
}

// rest pauses an object for d, by its Retry-After. alone: the header says nothing about
// other objects. It reports whether the whole origin pauses now.
func (r *rests) rest(origin, object string, d time.Duration, alone bool) (all bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	until := time.Now().Add(min(d, maxRest))
	before, _ := r.objects.Get(origin + "\x00" + object)
	r.objects.Add(origin+"\x00"+object, until)
	if alone || time.Now().Before(before) { // the pause is known already, from a concurrent request
		return false
	}
	o, ok := r.origins.Get(origin)
	if !ok {
		o = &originRest{}
		r.origins.Add(origin, o)
	}
	if o.said++; o.said < restingObjects {
		return false
	}
	o.until = until
	return true
}

// answered records a response of an origin without a pause. It ends the origin's pause.
func (r *rests) answered(origin string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.origins.Remove(origin)
}
