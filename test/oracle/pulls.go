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

// pulls are the pulls of a draw in all phases.
type pulls struct {
	*bench
	draw     *draw
	straight *world       // the registry for direct pulls
	behind   []*world     // the mirror's upstreams
	mirror   string       // its host:port
	again    atomic.Int64 // number of retries by the mirror's clients

	mu     sync.Mutex               // guards all below
	kept   map[string]digest.Digest // by repository: the root of the last pull through the mirror
	listed map[string]listings      // by repository: the last lists through the mirror
}

// phase runs the pulls of a phase.
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
	// The sick one is first: the healthy one must not wait for it.
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

// bound is the maximum of requests to the registry in a phase, for this number of direct
// requests and of retries by the mirror's clients.
func bound(p phase, straight, again int) int {
	if p == during {
		straight = 24 // an estimate: no direct pulls in an outage
	}
	return 3*straight + 40 + 3*again
}

// asked is the number of the mirror's requests.
func (r *pulls) asked() (n int) {
	for _, w := range r.behind {
		n += w.count()
	}
	return n
}

// compare pulls directly and through the mirror.
func (r *pulls) compare(p phase, repo string, want image) error {
	begun := time.Now()
	straight := errors.New("the registry is out")
	if p != during {
		straight = r.pullStraight(repo, want)
	}
	alone := time.Since(begun)
	kept := r.keeps(p, repo)
	healing := r.pace.healing
	if p > cold && !kept { // if only the tag is stored, the mirror first tries to fetch the image
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

// rest is a client's pause before a retry.
func (r *pulls) rest() {
	r.again.Add(1)
	time.Sleep(100 * time.Millisecond)
}

// allows is the maximum time of a pull through the mirror, given the time alone of a direct pull.
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

// keeps reports whether the mirror must have stored the image of a tag: a pull has fetched
// it, and the registry itself has not said that the tag does not exist.
func (r *pulls) keeps(p phase, repo string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	root := r.kept[repo]
	if repo == sick && p >= moved && !r.straight.second.root.is(root) {
		return false // the registry sends the new manifest without its layers
	}
	return root != "" && !slices.ContainsFunc(r.draw.quirks, func(q quirk) bool { return q.from <= p && (q.unkept || q.no == repo || q.no == "all") })
}

func (r *pulls) keep(repo string, root digest.Digest) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.kept[repo] = root
}

// endless is a bound on the requests of a pull: containerd continues as long as each
// request gets a byte.
const endless = 100

// pullStraight pulls as a client without a mirror, with retries.
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

// pullMirror pulls through the mirror, with two clients at once if the draw says so.
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

// transport is a client's transport. It refuses TLS at once, because some libraries try TLS first.
func (r *pulls) transport() *http.Transport {
	return &http.Transport{DialContext: r.dial(), DialTLSContext: func(context.Context, string, string) (net.Conn, error) {
		return nil, errors.New("no TLS is spoken here")
	}}
}

// lies returns what is wrong with complete content.
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

// check compares pulled content with the image.
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
