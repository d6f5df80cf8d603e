package proxy

import (
	"errors"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/cachalot-registry/cachalot/storage"
	"github.com/cachalot-registry/cachalot/upstream"
)

// cacheKey is what an answer of a registry is about (RFC 9111 section 2).
type cacheKey struct {
	upstream, repository string
	kind                 upstream.Kind // of content by digest; "": of a tag or a list
	reference            string        // a digest, a tag, or the name of a list
}

func contentKey(t target, d digest.Digest) cacheKey {
	return cacheKey{t.registry.Name(), t.repo, t.kind, string(d)}
}

func pointerKey(k storage.TagKey) cacheKey {
	return cacheKey{upstream: k.Upstream, repository: k.Repository, reference: k.Name}
}

// negativeCache has what registries do not have, or refuse, and downloads that failed
// (negative results, RFC 9111 section 2): they are not asked for again yet.
type negativeCache struct {
	entries *lru.Cache[cacheKey, negative]
	ttl     time.Duration // of a registry's no
}

// negative is an error that need not be asked for again yet.
type negative struct {
	err   error
	until time.Time
	pause time.Duration // after a download that failed
}

func newNegativeCache(ttl time.Duration) (*negativeCache, error) {
	entries, err := lru.New[cacheKey, negative](remember)
	return &negativeCache{entries, ttl}, err
}

func (e *negative) Error() string { return e.err.Error() + " (cached)" }
func (e *negative) Unwrap() error { return e.err }

// Public is what a client is told.
func (e *negative) Public() string { return publicText(e.err) + " (cached)" }

// isNegative reports whether err comes from the cache: it is not to be kept for longer.
func isNegative(err error) bool {
	_, ok := errors.AsType[*negative](err)
	return ok
}

// get returns the error that is kept for a key; nil: none is.
func (c *negativeCache) get(k cacheKey) error {
	if e, ok := c.entries.Get(k); ok && time.Now().Before(e.until) {
		return &e
	}
	return nil
}

// add keeps err if it is the upstream's no, or its refusal to say, and returns it. It is
// not for what something is stored of.
func (c *negativeCache) add(k cacheKey, err error) error {
	if !isNegative(err) && (upstream.SaysNo(err) || errors.Is(err, upstream.ErrDenied)) {
		c.entries.Add(k, negative{err: err, until: time.Now().Add(c.ttl)})
	}
	return err
}

// Content whose download has failed half-way, after all tries, is not fetched again for
// firstPause: clients ask for the rest at once, and find it elsewhere if they are told
// at once. It is twice as long after each failure that follows, up to longestPause.
const (
	firstPause   = time.Second
	longestPause = 30 * time.Second
)

// addFailed keeps the error of a download that has failed half-way.
func (c *negativeCache) addFailed(k cacheKey, err error) {
	pause := firstPause
	if last, ok := c.entries.Peek(k); ok {
		switch over := time.Since(last.until); {
		case over < 0: // another client of the same download was here first
			return
		case over < longestPause:
			pause = min(2*max(last.pause, firstPause), longestPause)
		}
	}
	c.entries.Add(k, negative{err: err, until: time.Now().Add(pause), pause: pause})
}

// headCache has what registries said of content by HEAD.
type headCache struct {
	entries *lru.Cache[cacheKey, headAnswer]
}

type headAnswer struct {
	desc ocispec.Descriptor
	at   time.Time
}

func newHeadCache() (headCache, error) {
	entries, err := lru.New[cacheKey, headAnswer](remember)
	return headCache{entries}, err
}

func (c headCache) add(k cacheKey, desc ocispec.Descriptor) {
	c.entries.Add(k, headAnswer{desc, time.Now()})
}

// get returns what was said after since.
func (c headCache) get(k cacheKey, since time.Time) (ocispec.Descriptor, bool) {
	answer, ok := c.entries.Get(k)
	return answer.desc, ok && answer.at.After(since)
}

// remove forgets what a cache has of the keys that fit.
func remove[V any](c *lru.Cache[cacheKey, V], fits func(cacheKey) bool) {
	for _, k := range c.Keys() {
		if fits(k) {
			c.Remove(k)
		}
	}
}
