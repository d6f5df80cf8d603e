package upstream

import (
	"fmt"
	"sync"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
)

const (
	// maxRest bounds what one answer can do to all that comes from its origin.
	maxRest = 5 * time.Minute
	// restingObjects of an origin that said so, one after the other and nothing else
	// in between, are taken for all of it.
	restingObjects = 3
)

// errResting: what is asked for has said when to ask again, and it is not then.
var errResting = fmt.Errorf("%w: not asked: the registry said when to ask again", ErrUnavailable)

// rests are what is not asked before the time that it said (RFC 9110 section 10.2.3):
// an object, or an origin, all of which seems to mean it.
type rests struct {
	mu      sync.Mutex // guards all below
	objects *lru.Cache[string, time.Time]
	origins *lru.Cache[string, *originRest]
}

type originRest struct {
	said  int       // objects that have said so since the last answer of another kind
	until time.Time // when all of it may be asked again
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

// left is how long an object of an origin is not asked; 0: it may be.
func (r *rests) left(origin, object string) time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	until, _ := r.objects.Get(origin + "\x00" + object)
	if o, ok := r.origins.Get(origin); ok && o.until.After(until) {
		until = o.until
	}
	return max(0, time.Until(until))
}

// until is when all of an origin may be asked again; zero: it does not rest.
func (r *rests) until(origin string) time.Time {
	r.mu.Lock()
	defer r.mu.Unlock()
	if o, ok := r.origins.Peek(origin); ok {
		return o.until
	}
	return time.Time{}
}

// rest records that an object said to ask again after d. Alone: it says nothing of the
// others. It reports whether all of the origin rests now.
func (r *rests) rest(origin, object string, d time.Duration, alone bool) (all bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	until := time.Now().Add(min(d, maxRest))
	before, _ := r.objects.Get(origin + "\x00" + object)
	r.objects.Add(origin+"\x00"+object, until)
	if alone || time.Now().Before(before) { // or asked at the same time as another
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

// answered records that something of an origin said nothing of the kind.
func (r *rests) answered(origin string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.origins.Remove(origin)
}
