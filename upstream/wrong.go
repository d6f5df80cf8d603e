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
	// wrongFor is how long a URL is not asked again for content that it sent wrongly.
	wrongFor = 10 * time.Minute
	// brokeFor is how long a URL is not asked again for content whose body broke.
	brokeFor = 10 * time.Second
	// maxWrong bounds the content of which is known who sent it.
	maxWrong = 4096
)

// wrong remembers which of a registry's URLs sent what content, and which of that
// broke, or was wrong: the digest is known at the end only, and then it is asked for in
// another way, or another URL is.
type wrong struct {
	mu   sync.Mutex // guards all below
	sent *lru.Cache[digest.Digest, []*sender]
}

// sender is a URL that sent some of a content.
type sender struct {
	endpoint *endpoint
	gzipped  bool      // it says of what it sends that it is packed
	unpack   bool      // which is not a mere label: the bytes have not the digest
	until    time.Time // not asked before, for it was wrong; zero: it may be right
	broke    time.Time // nor before this, for it broke; zero: it did not
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

// skip is the URLs that are not to be asked for d, and whether one is to be asked
// for all of it, to unpack that.
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

// broken records that what a URL sent for d did not come to its end.
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

// unpacks reports whether what a URL sends for d is to be unpacked.
func (w *wrong) unpacks(d digest.Digest, e *endpoint) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	senders, _ := w.sent.Peek(d)
	return slices.ContainsFunc(senders, func(s *sender) bool { return s.endpoint == e && s.unpack })
}

// refuse takes what a URL sent for d for wrong. If it said of the bytes that they are
// packed, they are unpacked the next time; or else it is not asked for d for a while.
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

// HasOther reports whether d, for which something else was sent, can be asked for in
// another way: unpacked, or of another URL. Where all URLs were wrong, all are asked
// again later.
func (r *Registry) HasOther(d digest.Digest) bool {
	skip, unpacks := r.wrong.skip(d)
	return unpacks || 0 < len(skip) && len(skip) < len(r.endpoints)
}
