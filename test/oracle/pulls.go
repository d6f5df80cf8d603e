package oracle

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"
)

// pulls are those of a draw, on its way through the phases.
type pulls struct {
	*bench
	draw     *draw
	straight *world       // what who pulls straight asks
	behind   []*world     // what the mirror asks
	mirror   string       // its host:port
	again    atomic.Int64 // how often a client of the mirror has tried again

	mu     sync.Mutex               // guards all below
	kept   map[string]digest.Digest // by repository: the root that a pull through the mirror brought last
	listed map[string]listings      // by repository: what came through the mirror last
}

// phase makes the pulls of a phase.
func (r *pulls) phase(p phase) error {
	if p > warm {
		time.Sleep(r.pace.fresh + r.pace.fresh/10)
	}
	if !r.draw.spare {
		defer r.straight.begin(r.draw, p)()
	}
	defer r.behind[0].begin(r.draw, p)()
	want := map[string]image{sick: r.straight.first, healthy: r.straight.other}
	if p >= moved {
		want[sick] = r.straight.second
	}
	switch p {
	case moved:
		r.straight.moves()
		for _, w := range r.behind {
			w.moves()
		}
	case during:
		for _, w := range r.behind {
			defer r.draw.outage.begin(w)()
		}
	}
	straight, behind := -r.straight.count(), -r.asked()
	r.again.Store(0)
	// The sick one first: who wants the healthy one is not to wait for it.
	var running errgroup.Group
	for _, repo := range []string{sick, healthy} {
		running.Go(func() error {
			err := r.compare(p, repo, want[repo])
			if err == nil && p != warm && (p != during || !r.draw.outage.lies) {
				err = r.lists(p, repo)
			}
			if err != nil {
				return fmt.Errorf("%s, %s: %w", p, repo, err)
			}
			return nil
		})
	}
	if err := running.Wait(); err != nil {
		return err
	}
	straight += r.straight.count()
	behind += r.asked()
	if p == cold && len(r.kept) == 2 {
		r.tally.add(straight, behind)
	}
	if again := int(r.again.Load()); behind > bound(p, straight, again) {
		return fmt.Errorf("%s: %d requests to the registry, and %d straight; tried again %d times", p, behind, straight, again)
	}
	return nil
}

// bound is how many requests to the registry a phase is worth, where so many are made
// straight, and clients of the mirror have tried so many times again.
func bound(p phase, straight, again int) int {
	if p == during {
		straight = 24 // as many as it would be
	}
	return 3*straight + 40 + 3*again
}

// asked is how many requests the mirror has made.
func (r *pulls) asked() (n int) {
	for _, w := range r.behind {
		n += w.count()
	}
	return n
}

// compare pulls straight and through the mirror.
func (r *pulls) compare(p phase, repo string, want image) error {
	begun := time.Now()
	straight := errors.New("the registry is out")
	if p != during {
		straight = r.pullStraight(repo, want)
	}
	alone := time.Since(begun)
	kept := r.keeps(p, repo)
	healing := r.pace.healing
	if p > cold && !kept { // an image of which only the tag is kept is tried for once
		healing *= 2
	}
	for begun = time.Now(); ; {
		got, err := r.pullMirror(p, repo)
		if wrong := r.lies(got, err); wrong != nil {
			return wrong
		}
		if err == nil && straight == nil && !want.root.is(got.Root) {
			err = fmt.Errorf("it still gives %s, and not %s", got.Root, want.root.Digest)
		}
		took := time.Since(begun)
		switch late := r.allows(p, repo, straight == nil, alone) + healing - r.pace.healing; {
		case err == nil && straight == nil && took > late:
			return fmt.Errorf("it is pulled straight in %s, and through the mirror in %s, longer than %s", alone, took, late)
		case err == nil && kept && took > late:
			return fmt.Errorf("it was kept, and took %s, longer than %s", took, late)
		case err == nil:
			r.keep(repo, got.Root)
			return nil
		case straight == nil && took > healing:
			return fmt.Errorf("it is pulled straight, and not through the mirror (%s of %s): %w", got.Root, want.root.Digest, err)
		case kept && straight != nil && took > r.pace.healing:
			return fmt.Errorf("it was pulled through the mirror before, and is not now: %w (straight: %v)", err, straight) //nolint:errorlint // one is enough
		case straight != nil && !kept:
			return nil
		}
		r.rest()
	}
}

// rest is what a client of the mirror does before it tries again.
func (r *pulls) rest() {
	r.again.Add(1)
	time.Sleep(100 * time.Millisecond)
}

// allows is how long a pull through the mirror may take, that takes so long straight or
// is kept.
func (r *pulls) allows(p phase, repo string, straight bool, alone time.Duration) time.Duration {
	shared := slices.ContainsFunc(r.draw.quirks, func(q quirk) bool { return q.shared })
	switch {
	case p == during || !straight:
		return r.pace.unchecked
	case repo == healthy && !shared:
		return alone + r.pace.apart
	default:
		return alone + r.pace.healing
	}
}

// keeps reports whether the mirror has to have what a repository's tag leads to: a pull
// has brought it, and the registry has not said itself that it does not have the tag.
func (r *pulls) keeps(p phase, repo string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	root := r.kept[repo]
	if repo == sick && p >= moved && !r.straight.second.root.is(root) {
		return false // the registry gives the new manifest, and not its layers
	}
	return root != "" && !slices.ContainsFunc(r.draw.quirks, func(q quirk) bool { return q.from <= p && (q.unkept || q.no == repo || q.no == "all") })
}

func (r *pulls) keep(repo string, root digest.Digest) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.kept[repo] = root
}

// endless is how many requests are no pull any more: containerd goes on as long as each
// brings a byte, one after the other.
const endless = 100

// pullStraight pulls as clients do where there is no mirror: again, if it fails.
func (r *pulls) pullStraight(repo string, want image) error {
	var err error
	before := r.straight.count()
	for range 3 {
		var got Pulled
		got, err = r.pull(r.straight.host(), repo)
		if n := r.straight.count() - before; err == nil && n > endless {
			return fmt.Errorf("it takes %d requests", n)
		}
		if err == nil {
			err = want.check(got)
		}
		if err == nil || errors.Is(err, context.DeadlineExceeded) {
			break
		}
	}
	return err
}

// pullMirror pulls through the mirror, by two clients at once where the draw says so.
func (r *pulls) pullMirror(p phase, repo string) (Pulled, error) {
	if !r.draw.both || p != cold {
		return r.pull(r.mirror, repo)
	}
	var running errgroup.Group
	var got [2]Pulled
	for i := range got {
		running.Go(func() (err error) {
			got[i], err = r.pull(r.mirror, repo)
			if wrong := r.lies(got[i], err); wrong != nil {
				return wrong
			}
			return err
		})
	}
	err := running.Wait()
	return got[0], err
}

func (r *pulls) pull(host, repo string) (Pulled, error) {
	ctx, cancel := context.WithTimeout(context.Background(), r.pace.patience)
	defer cancel()
	own := r.transport()
	defer own.CloseIdleConnections()
	return r.draw.client.Pull(ctx, &http.Client{Transport: own}, host, repo)
}

// transport is a client's. It does not shake hands in vain where a library would try TLS
// first.
func (r *pulls) transport() *http.Transport {
	return &http.Transport{DialContext: r.dial(), DialTLSContext: func(context.Context, string, string) (net.Conn, error) {
		return nil, errors.New("no TLS is spoken here")
	}}
}

// lies returns what is wrong with what came whole.
func (r *pulls) lies(got Pulled, err error) error {
	unnamed := slices.ContainsFunc(r.draw.quirks, func(q quirk) bool { return q.unnamed })
	for d, b := range got.Contents {
		if d == got.Root && unnamed {
			continue
		}
		if !r.straight.has(b) || d.Algorithm().FromBytes(b) != d {
			return fmt.Errorf("%s came whole, and is %.100q", d, b)
		}
	}
	if err == nil && len(got.Contents[got.Root]) == 0 {
		return fmt.Errorf("the tag leads to %s", got.Root)
	}
	return nil
}

// check compares what was pulled with what there is.
func (i image) check(got Pulled) error {
	if !i.root.is(got.Root) {
		return fmt.Errorf("the root is %s, not %s", got.Root, i.root.Digest)
	}
	for _, c := range i.contents() {
		d := c.Digest
		if d == i.root.Digest {
			d = got.Root
		}
		if !bytes.Equal(got.Contents[d], c.Bytes) {
			return fmt.Errorf("%s %s: other bytes, or none", c.MediaType, c.Digest)
		}
	}
	return nil
}
