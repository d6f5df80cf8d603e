package oracle

import (
	"context"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"runtime/debug"
	"slices"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cachalot-registry/cachalot/proxy"
	"github.com/cachalot-registry/cachalot/storage"
	"github.com/cachalot-registry/cachalot/upstream"
	ut "github.com/cachalot-registry/cachalot/upstream/upstreamtest"
	"github.com/opencontainers/go-digest"
)

// pace are the times of a run.
type pace struct {
	fresh, revalidate time.Duration // the mirror's tags.fresh_for and revalidate_timeout
	silence           time.Duration // its timeouts for a silent upstream
	patience          time.Duration // how long a client waits for a pull
	// healing is the maximum extra time of a pull through the mirror compared with a direct
	// one, failed tries included (law L5).
	healing time.Duration
	// unchecked is the maximum time for stored content in an outage.
	unchecked time.Duration
	// apart is the maximum extra time for healthy content through the mirror, whatever else
	// is sick (law L4).
	apart    time.Duration
	batch    int // consecutive seeds with one store
	together int // concurrent batches
}

// Run tests count seeds from first on. For a failure it reports the necessary quirks. All
// is in memory and in synctest's bubbles, so waits take no time and times do not depend on
// the machine.
func Run(t *testing.T, clients []Client, first, count int) {
	t.Helper()
	exact := pace{
		fresh: 10 * time.Second, revalidate: time.Second, silence: 5 * time.Second, patience: 25 * time.Second,
		healing: 20 * time.Second, unchecked: 3 * time.Second, apart: time.Second, batch: 64, together: 4,
	}
	run(t, exact, clients, first, count, func(t *testing.T, seeds func(t *testing.T, network *ut.Memory)) {
		t.Helper()
		synctest.Test(t, func(t *testing.T) { seeds(t, ut.NewMemory()) })
	})
}

// RunOnLoopback is Run for clients that open their own connections. Its times depend on the
// machine, so waits are barely checked.
func RunOnLoopback(t *testing.T, clients []Client, first, count int) {
	t.Helper()
	real := pace{
		fresh: 500 * time.Millisecond, revalidate: time.Second, silence: 2 * time.Second, patience: 10 * time.Second,
		healing: 15 * time.Second, unchecked: time.Minute, apart: time.Minute, batch: 2, together: 32,
	}
	run(t, real, clients, first, count, func(t *testing.T, seeds func(t *testing.T, network *ut.Memory)) {
		t.Helper()
		seeds(t, nil)
	})
}

func run(t *testing.T, p pace, clients []Client, first, count int, within func(*testing.T, func(*testing.T, *ut.Memory))) {
	t.Helper()
	defer debug.SetGCPercent(debug.SetGCPercent(400)) // the garbage collector takes a quarter of the CPU time
	var tally tally
	slots := make(chan struct{}, p.together)
	t.Run("seeds", func(t *testing.T) {
		for begin := first; begin < first+count; begin += p.batch {
			end := min(begin+p.batch, first+count)
			t.Run(strconv.Itoa(begin), func(t *testing.T) {
				t.Parallel()
				slots <- struct{}{}
				defer func() { <-slots }()
				dir := ut.Folder(t)
				within(t, func(t *testing.T, network *ut.Memory) {
					t.Helper()
					b := bench{pace: p, network: network, store: open(t, dir), tally: &tally}
					for seed := begin; seed < end && !t.Failed(); seed++ {
						b.tries = 0
						d := newDraw(uint64(seed), clients)
						if wrong := b.try(t, d); wrong != nil {
							shrunk := b.shrink(t, d, clients)
							t.Errorf("%v\n%v\nshrunk:\n%v\n%v", d, wrong, shrunk, b.try(t, shrunk))
						}
					}
				})
			})
		}
	})
	t.Log(&tally)
	if tally.pulls < count/2 && !t.Failed() {
		t.Errorf("%d of %d seeds can be pulled straight: this says too little of the mirror", tally.pulls, count)
	}
}

// open opens a store for some seeds. Their contents and upstream names differ.
func open(t *testing.T, dir string) *storage.Store {
	t.Helper()
	store, err := storage.Open(storage.Config{Path: dir, MaxFills: 256}, storage.NewMetrics(), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := store.Close(); err != nil {
			t.Error(err)
		}
	})
	return store
}

// tally is the cost, in requests to the registries.
type tally struct {
	mu               sync.Mutex
	pulls            int // pulls that succeed both directly and through the mirror
	straight, mirror int // their requests
}

func (t *tally) add(straight, mirror int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.pulls++
	t.straight += straight
	t.mirror += mirror
}

func (t *tally) String() string {
	return fmt.Sprintf("%d first pulls, %.2f requests each straight and %.2f through the mirror",
		t.pulls, float64(t.straight)/float64(t.pulls), float64(t.mirror)/float64(t.pulls))
}

// bench runs seeds.
type bench struct {
	pace    pace
	network *ut.Memory // nil: loopback
	store   *storage.Store
	tally   *tally
	tries   uint64 // tries of the seed; each starts cold
}

// shrink removes quirks while the seed still fails.
func (b *bench) shrink(t *testing.T, d *draw, clients []Client) *draw {
	t.Helper()
	smaller := *d
	for i := 0; i < len(smaller.quirks); {
		less := smaller
		less.quirks = slices.Delete(slices.Clone(smaller.quirks), i, i+1)
		if b.try(t, &less) == nil {
			i++
			continue
		}
		smaller = less
	}
	for _, simpler := range []func(*draw){
		func(d *draw) { d.both = false }, func(d *draw) { d.sha512 = false }, func(d *draw) { d.docker = false },
		func(d *draw) { d.vanity = false }, func(d *draw) { d.spare = false },
		func(d *draw) { d.single = true }, func(d *draw) { d.sizes = d.sizes[:1] }, func(d *draw) { d.client = clients[len(clients)-1] },
	} {
		less := smaller
		simpler(&less)
		if b.try(t, &less) != nil {
			smaller = less
		}
	}
	return &smaller
}

// ending runs cleanups at the end of a try, before the test's end.
type ending struct {
	*testing.T

	mu   sync.Mutex
	ends []func()
}

func (e *ending) Cleanup(f func()) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.ends = append(e.ends, f)
}

func (e *ending) end() {
	for _, f := range slices.Backward(e.ends) {
		f()
	}
}

// try pulls from a registry directly and through a mirror, phase by phase, and returns what
// is wrong with the mirror.
func (b *bench) try(t *testing.T, d *draw) (wrong error) {
	t.Helper()
	e := &ending{T: t}
	defer e.end()
	drawn := *d
	b.tries++
	drawn.seed += b.tries << 32 // own upstreams and contents, with the same quirks
	plain := drawn
	plain.quirks, plain.vanity = nil, false
	p := pulls{bench: b, draw: &drawn, behind: []*world{drawn.build(e, b.network)}, kept: map[string]digest.Digest{}, listed: map[string]listings{}}
	if drawn.spare {
		p.straight = plain.build(e, b.network)
		p.behind = append(p.behind, plain.build(e, b.network))
	} else {
		p.straight = drawn.build(e, b.network)
	}
	var urls []string
	for _, w := range p.behind {
		urls = append(urls, w.url())
	}
	p.mirror = b.mirror(e, fmt.Sprintf("seed%d.test", drawn.seed), urls)
	for at := cold; at <= after; at++ {
		if err := p.phase(at); err != nil {
			return err
		}
	}
	return nil
}

// dial opens connections of the bench's network; nil: the machine's.
func (b *bench) dial() func(ctx context.Context, network, address string) (net.Conn, error) {
	if b.network == nil {
		return nil
	}
	return b.network.DialContext
}

// mirror starts cachalot in front of a registry, and returns its host:port.
func (b *bench) mirror(e *ending, name string, urls []string) string {
	e.Helper()
	quiet := slog.New(slog.DiscardHandler)
	r, err := upstream.New(upstream.Config{
		Name: name, URLs: urls, RaceAfter: time.Second, Dial: b.dial(),
		Timeouts: upstream.Timeouts{ResponseHeader: b.pace.silence, Progress: b.pace.silence},
	}, upstream.NewMetrics(), quiet)
	if err != nil {
		e.Fatal(err)
	}
	p, err := proxy.New(proxy.Config{
		DefaultUpstream: r.Name(), FreshFor: b.pace.fresh, MaxStale: 24 * time.Hour, RevalidateTimeout: b.pace.revalidate, NegativeFor: time.Second,
	}, b.store, []proxy.Upstream{{Registry: r}}, proxy.NewMetrics(), quiet)
	if err != nil {
		e.Fatal(err)
	}
	var l net.Listener
	if b.network != nil {
		l, err = b.network.Listen("127.0.0.1:0")
	} else {
		l, err = net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // nothing to wait for
	}
	if err != nil {
		e.Fatal(err)
	}
	s := &http.Server{Handler: p, ReadHeaderTimeout: time.Minute, ErrorLog: log.New(io.Discard, "", 0)}
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = s.Serve(l) // ends with ErrServerClosed
	}()
	e.Cleanup(func() {
		_ = s.Close() // only abandoned connections remain
		<-served
		p.Close()
		r.Close()
	})
	return l.Addr().String()
}
