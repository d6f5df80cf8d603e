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

// cacheKey says what an answer of a registry is about (RFC 9111 section 2).
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

// negativeCache has the errors of content that a registry does not have, or denies, and of
// downloads that failed (negative results, RFC 9111 section 2). Until an entry expires, the
// registry is not asked again.
type negativeCache struct {
	entries *lru.Cache[cacheKey, negative]
	ttl     time.Duration // of a registry's 404 or denial
}

// negative is a cached error.
type negative struct {
	err   error
	until time.Time
	pause time.Duration // of a failed download: how long it is cached
}

func newNegativeCache(ttl time.Duration) (*negativeCache, error) {
	entries, err := lru.New[cacheKey, negative](remember)
	return &negativeCache{entries, ttl}, err
}

func (e *negative) Error() string { return e.err.Error() + " (cached)" }
func (e *negative) Unwrap() error { return e.err }

// Public is what a client is told.
func (e *negative) Public() string { return publicText(e.err) + " (cached)" }

// isNegative reports whether err comes from the cache: it must not extend its own entry.
func isNegative(err error) bool {
	_, ok := errors.AsType[*negative](err)
	return ok
}

// get returns the cached error of a key; nil: none.
func (c *negativeCache) get(k cacheKey) error {
	if e, ok := c.entries.Get(k); ok && time.Now().Before(e.until) {
		return &e
	}
	return nil
}

// add caches err if it is the upstream's 404 or denial, and returns it. It must not be
// called for a pointer that is stored.
func (c *negativeCache) add(k cacheKey, err error) error {
	if !isNegative(err) && (upstream.SaysNo(err) || errors.Is(err, upstream.ErrDenied)) {
		c.entries.Add(k, negative{err: err, until: time.Now().Add(c.ttl)})
	}
	return err
}

// Content whose download has failed half-way, after all retries, is not downloaded again for
// firstPause. Clients ask for the rest at once, and with an immediate error they can use
// another registry. The pause doubles with each further failure, up to longestPause.
const (
	firstPause   = time.Second
	longestPause = 30 * time.Second
)

// addFailed caches the error of a download that has failed half-way.
func (c *negativeCache) addFailed(k cacheKey, err error) {
	pause := firstPause
	if last, ok := c.entries.Peek(k); ok {
		switch over := time.Since(last.until); {
		case over < 0: // another client of the same download has added it
			return
		case over < longestPause:
			pause = min(2*max(last.pause, firstPause), longestPause)
		}
	}
	c.entries.Add(k, negative{err: err, until: time.Now().Add(pause), pause: pause})
}

// headCache has the answers of registries to HEAD requests for content.
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

// get returns an answer that came after since.
func (c headCache) get(k cacheKey, since time.Time) (ocispec.Descriptor, bool) {
	answer, ok := c.entries.Get(k)
	return answer.desc, ok && answer.at.After(since)
}

// remove removes the entries of a cache whose keys fit.
func remove[V any](c *lru.Cache[cacheKey, V], fits func(cacheKey) bool) {
	for _, k := range c.Keys() {
		if fits(k) {
			c.Remove(k)
		}
	}
}
