package upstream

import (
	"fmt"
	"slices"
	"sync"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"github.com/opencontainers/go-digest"
)

const (
	// wrongFor is how long a URL is skipped for content that it sent wrongly.
	wrongFor = 10 * time.Minute
	// brokeFor is how long a URL is skipped for content whose body broke.
	brokeFor = 10 * time.Second
	// maxWrong bounds the number of digests whose senders are known.
	maxWrong = 4096
)

// wrong records which of a registry's URLs sent content for a digest, and whether that
// broke, or was wrong. A wrong digest shows at the end only; the next request is then made
// in another way, or to another URL.
type wrong struct {
	mu   sync.Mutex // guards all below
	sent *lru.Cache[digest.Digest, []*sender]
}

// sender is a URL that sent content for a digest, or a part of it.
type sender struct {
	endpoint *endpoint
	gzipped  bool      // its responses say that their bodies are gzip
	unpack   bool      // and that is true: as sent, the bytes do not have the digest
	until    time.Time // skipped until then, because it was wrong; zero: it may be right
	broke    time.Time // skipped until then, because the body broke; zero: it did not
}

func newWrong() (*wrong, error) {
	sent, err := lru.New[digest.Digest, []*sender](maxWrong)
	if err != nil {
		return nil, fmt.Errorf("make cache of senders: %w", err)
	}
	return &wrong{sent: sent}, nil
}

// note records that a URL sends content for d.
func (w *wrong) note(d digest.Digest, e *endpoint, gzipped bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	senders, _ := w.sent.Get(d)
	i := slices.IndexFunc(senders, func(s *sender) bool { return s.endpoint == e })
	if i < 0 {
		w.sent.Add(d, append(senders, &sender{endpoint: e, gzipped: gzipped}))
		return
	}
	senders[i].gzipped = gzipped
}

// skip returns the URLs to skip for d, and whether the whole content is to be requested
// because a URL's content has to be decompressed.
func (w *wrong) skip(d digest.Digest) (skip []*endpoint, unpacks bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	senders, _ := w.sent.Peek(d)
	for _, s := range senders {
		unpacks = unpacks || s.unpack
		if now := time.Now(); now.Before(s.until) || now.Before(s.broke) {
			skip = append(skip, s.endpoint)
		}
	}
	return skip, unpacks
}

// broken records that the body that a URL sent for d ended too early.
func (w *wrong) broken(d digest.Digest, e *endpoint) {
	w.mu.Lock()
	defer w.mu.Unlock()
	senders, _ := w.sent.Peek(d)
	for _, s := range senders {
		if s.endpoint == e {
			s.broke = time.Now().Add(brokeFor)
		}
	}
}

// unpacks reports whether the content that a URL sends for d is to be decompressed.
func (w *wrong) unpacks(d digest.Digest, e *endpoint) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	senders, _ := w.sent.Peek(d)
	return slices.ContainsFunc(senders, func(s *sender) bool { return s.endpoint == e && s.unpack })
}

// refuse records that the content that a URL sent for d is wrong. If the response said that
// it is gzip, it is decompressed the next time; otherwise, or if it was decompressed
// already, the URL is skipped for d for a while.
func (w *wrong) refuse(d digest.Digest, e *endpoint) {
	w.mu.Lock()
	defer w.mu.Unlock()
	senders, _ := w.sent.Peek(d)
	for _, s := range senders {
		switch {
		case s.endpoint != e:
		case s.gzipped && !s.unpack:
			s.unpack = true
		default:
			s.unpack, s.until = false, time.Now().Add(wrongFor)
		}
	}
}

// HasOther reports whether d, for which wrong content was sent, can be requested in
// another way: decompressed, or from another URL. If all URLs were wrong, all are tried
// again later.
func (r *Registry) HasOther(d digest.Digest) bool {
	skip, unpacks := r.wrong.skip(d)
	return unpacks || 0 < len(skip) && len(skip) < len(r.endpoints)
}
