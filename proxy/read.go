package proxy

import (
	"context"
	"io"
	"sync"

	"github.com/hashicorp/golang-lru/v2/simplelru"
	"github.com/opencontainers/go-digest"

	"github.com/cachalot-registry/cachalot/bounds"
	"github.com/cachalot-registry/cachalot/storage/download"
)

// maxRead bounds the memory of readLists, in bytes.
const maxRead = 8 << 20

// readLists has the lists that were decoded last, so that hundreds of clients that page
// through a list cost one decoding.
type readLists struct {
	mu    sync.Mutex // guards the fields below
	lists *simplelru.LRU[listKey, readList]
	bytes int
}

// listKey says what was read from content: a list by its kind, or the manifest for a platform.
type listKey struct {
	what   string
	digest digest.Digest
}

type readList struct {
	list any
	size int
}

func newReadLists() (*readLists, error) {
	l := &readLists{}
	var err error
	l.lists, err = simplelru.NewLRU(remember, func(_ listKey, gone readList) { l.bytes -= gone.size })
	return l, err
}

func (l *readLists) get(key listKey) (list any, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	r, ok := l.lists.Get(key)
	return r.list, ok
}

func (l *readLists) add(key listKey, r readList) {
	if r.size > maxRead/2 {
		return // it would push out all others
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lists.Remove(key)
	l.lists.Add(key, r)
	for l.bytes += r.size; l.bytes > maxRead; {
		l.lists.RemoveOldest()
	}
}

// readOnce returns what readLists has of content, or reads it. Concurrent callers share one
// call of read, which also returns the size in memory.
func readOnce[T any](ctx context.Context, p *Proxy, t target, key listKey, read func(context.Context) (T, int, error)) (T, error) {
	if known, ok := p.readLists.get(key); ok {
		if l, ok := known.(T); ok {
			return l, nil
		}
	}
	return once(ctx, p.checks, t.asks("read "+key.what, contentKey(t, key.digest)), func(ctx context.Context) (T, error) {
		l, size, err := read(ctx)
		if err == nil {
			p.readLists.add(key, readList{l, size})
		}
		return l, err
	})
}

// holds charges a list's bytes in memory to a request, until done.
func (p *Proxy) holds(ctx context.Context, t target, bytes int) (done func(), err error) {
	ctx, done = p.cfg.Memory.Account(ctx, t.holder())
	if err := bounds.Charge(ctx, bytes); err != nil {
		done()
		return nil, err
	}
	return done, nil
}

// accounted returns a part that calls closed, which frees its memory, when its body is closed.
func accounted(part *download.Part, closed func()) *download.Part {
	if part == nil {
		closed()
		return nil
	}
	part.Body = &accountedBody{part.Body, sync.OnceFunc(closed)}
	return part
}

type accountedBody struct {
	io.ReadCloser
	closed func()
}

func (b *accountedBody) Close() error {
	defer b.closed()
	return b.ReadCloser.Close()
}
