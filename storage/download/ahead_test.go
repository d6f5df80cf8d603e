package download

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cachalot-registry/cachalot/upstream/upstreamtest"
)

// network is a Source whose connections have a rate, on a bubble's clock. It counts the bytes
// that it sends.
type network struct {
	content []byte
	each    int64                       // bytes a second of one connection; 0: any
	all     int64                       // of all together; 0: any
	latency time.Duration               // of opening
	spare   func(nth int) time.Duration // added to latency for a spare connection
	refuse  func(nth int, s Span) error // fails the nth open, from 0
	cut     func(nth int, s Span) int64 // bytes after which the nth body breaks; 0: none

	mu    sync.Mutex // guards the fields below
	asked []Span
	sent  int64
	most  int       // connections at once
	open  int       // connections now
	free  time.Time // when the link has sent all bytes so far
	broke int       // breaks that the stream reported
}

var errCut = errors.New("cut")

func (l *network) source(ctx context.Context, s Span) (*Part, error) {
	if s.IfLong && int64(len(l.content)) < 2*s.Length {
		s.Length = 0
	}
	l.mu.Lock()
	nth := len(l.asked)
	l.asked = append(l.asked, s)
	l.mu.Unlock()
	latency := l.latency
	if s.Spare && l.spare != nil {
		latency += l.spare(nth)
	}
	if err := sleep(ctx, latency); err != nil {
		return nil, err
	}
	if l.refuse != nil {
		if err := l.refuse(nth, s); err != nil {
			return nil, err
		}
	}
	end := int64(len(l.content))
	if s.Length > 0 {
		end = min(end, s.Offset+s.Length)
	}
	b := &linkBody{link: l, ctx: ctx, left: l.content[s.Offset:end], cut: -1}
	if l.cut != nil {
		if n := l.cut(nth, s); n > 0 {
			b.cut = n
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.open++
	l.most = max(l.most, l.open)
	return &Part{Body: b, Offset: s.Offset, End: end, Size: int64(len(l.content))}, nil
}

// opened returns how many connections are open.
func (l *network) opened() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.open
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

type linkBody struct {
	link   *network
	ctx    context.Context
	left   []byte
	cut    int64
	closed sync.Once
}

func (b *linkBody) Read(p []byte) (int, error) {
	l := b.link
	n := int64(min(len(p), len(b.left), 32<<10))
	switch {
	case n == 0:
		return 0, io.EOF
	case b.cut == 0:
		return 0, errCut
	case b.cut > 0:
		n = min(n, b.cut)
		b.cut -= n
	}
	var wait time.Duration
	if l.each > 0 {
		wait = time.Duration(n * int64(time.Second) / l.each)
	}
	l.mu.Lock()
	l.sent += n
	if l.all > 0 {
		if now := time.Now(); l.free.Before(now) {
			l.free = now
		}
		l.free = l.free.Add(time.Duration(n * int64(time.Second) / l.all))
		wait = max(wait, time.Until(l.free))
	}
	l.mu.Unlock()
	if err := sleep(b.ctx, wait); err != nil {
		return 0, err
	}
	copy(p, b.left[:n])
	b.left = b.left[n:]
	return int(n), nil
}

func (b *linkBody) Close() error {
	b.closed.Do(func() {
		b.link.mu.Lock()
		defer b.link.mu.Unlock()
		b.link.open--
	})
	return nil
}

// download reads all of l in a bubble. r has the buffers for pieces. late is the longest delay
// behind a single connection without breaks.
func download(t *testing.T, l *network, r *Buffers, reader time.Duration) (got []byte, took, late time.Duration, err error) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		st, oerr := Open(t.Context(), l.source, 0, r, func(int64, error) { l.broke++ })
		if oerr != nil {
			err = oerr
			return
		}
		defer st.Close()
		buf := make([]byte, chunk)
		got = make([]byte, 0, len(l.content)+chunk)
		rate := l.each
		if l.all > 0 && (rate == 0 || l.all < rate) {
			rate = l.all
		}
		for {
			n, rerr := st.Read(buf)
			got = append(got, buf[:n]...)
			time.Sleep(reader)
			if rate > 0 {
				due := l.latency + time.Duration(int64(len(got))*int64(time.Second)/rate)
				late = max(late, time.Since(began)-due)
			}
			if rerr != nil {
				if !errors.Is(rerr, io.EOF) {
					err = rerr
				}
				break
			}
		}
		took = time.Since(began)
	})
	return got, took, late, err
}

// whole checks that the right bytes arrived, and that each was sent once.
func (l *network) whole(t *testing.T, got []byte, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, l.content) {
		t.Fatalf("got %d bytes, not the blob's %d", len(got), len(l.content))
	}
	if l.sent != int64(len(l.content)) {
		t.Errorf("%d bytes were sent for %d", l.sent, len(l.content))
	}
	if l.open != 0 {
		t.Errorf("%d connections are open still", l.open)
	}
}

func TestAhead(t *testing.T) {
	t.Parallel()
	blob := upstreamtest.Random(1, 96<<20)
	const mib = 1 << 20
	for name, tc := range map[string]struct {
		link   *network
		reader time.Duration // for each chunk
		quick  float64       // how many times as fast as one connection, at least
		most   int           // connections at once
		least  int
		late   time.Duration
		asks   int // requests at most; 0: any number
	}{
		"each connection is slow": {
			link: &network{each: 8 * mib, latency: 60 * time.Millisecond}, quick: 3, most: maxConnections, least: maxConnections,
		},
		"each is slow, and far away": {
			link: &network{each: 8 * mib, latency: 400 * time.Millisecond}, quick: 2.5, most: maxConnections, least: maxConnections,
		},
		"all share a link": {
			link: &network{each: 50 * mib, all: 8 * mib, latency: 60 * time.Millisecond}, quick: 0.99, most: 2, least: 2,
			late: 300 * time.Millisecond, // 2 MiB of the link
		},
		"three fill the link": {
			link: &network{each: 8 * mib, all: 25 * mib, latency: 60 * time.Millisecond}, quick: 2, most: maxConnections, least: 4,
			late: 400 * time.Millisecond, // while 8 are on trial
		},
		"the reader is slow": {
			link: &network{each: 50 * mib}, reader: 10 * time.Millisecond, quick: 0, most: 2, least: 1, late: time.Hour, asks: 2,
		},
		"the network is quick": {
			link: &network{latency: 10 * time.Millisecond}, reader: time.Millisecond, most: 2, least: 1, late: time.Hour, asks: 2,
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := tc.link
			l.content = blob
			got, took, late, err := download(t, l, NewBuffers(), tc.reader)
			l.whole(t, got, err)
			if l.most > tc.most || l.most < tc.least {
				t.Errorf("%d connections at once; want %d to %d", l.most, tc.least, tc.most)
			}
			rate := l.each
			if l.all > 0 {
				rate = min(l.all, rate)
			}
			if rate > 0 && tc.quick > 0 {
				alone := l.latency + time.Duration(int64(len(blob))*int64(time.Second)/rate)
				if took > time.Duration(float64(alone)/tc.quick) {
					t.Errorf("took %s, one connection alone %s; want it %.2f times as quick", took, alone, tc.quick)
				}
				t.Logf("%s, alone %s (x %.2f), %d requests, %d at once, late by %s", took, alone, float64(alone)/float64(took), len(l.asked), l.most, late)
			}
			if tc.asks > 0 && len(l.asked) > tc.asks {
				t.Errorf("%d requests; want at most %d", len(l.asked), tc.asks)
			}
			if late > tc.late {
				t.Errorf("the reader was %s behind one connection; want at most %s", late, tc.late)
			}
		})
	}
}

// TestAheadBreaks: if connections break, no received byte is lost or downloaded again, and the
// order is right.
func TestAheadBreaks(t *testing.T) {
	t.Parallel()
	blob := upstreamtest.Random(2, 64<<20)
	refused := fmt.Errorf("%w: busy", ErrRefused) // the connection is refused, not the blob
	busy := func(of func(nth int) bool) func(int, Span) error {
		return func(nth int, s Span) error {
			if s.Spare && of(nth) {
				return refused
			}
			return nil
		}
	}
	for name, tc := range map[string]struct {
		link  *network
		broke int // breaks that are reported
	}{
		"every third connection breaks": {
			link:  &network{cut: func(nth int, _ Span) int64 { return []int64{0, 0, 300_000}[nth%3] }},
			broke: 2,
		},
		"the first breaks":                 {link: &network{cut: func(nth int, _ Span) int64 { return []int64{5 << 20, 0}[min(nth, 1)] }}, broke: 1},
		"no spare connection":              {link: &network{refuse: busy(func(int) bool { return true })}},
		"spare ones panic":                 {link: &network{refuse: busy(func(int) bool { panic("a bug in what asks") })}},
		"spare ones are refused later":     {link: &network{refuse: busy(func(nth int) bool { return nth > 7 })}},
		"every other spare one is refused": {link: &network{refuse: busy(func(nth int) bool { return nth%2 == 0 })}},
		"spare ones are refused too late": {link: &network{
			spare:  func(int) time.Duration { return 1800 * time.Millisecond },
			refuse: busy(func(nth int) bool { return nth < 5 }),
		}, broke: 2}, // the front was waiting
		"one is refused after the others": {link: &network{
			spare:  func(nth int) time.Duration { return []time.Duration{0, 600 * time.Millisecond}[nth%2] },
			refuse: busy(func(nth int) bool { return nth > 2 }),
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := tc.link
			l.content, l.each, l.latency = blob, 8<<20, 50*time.Millisecond
			got, took, _, err := download(t, l, NewBuffers(), 0)
			l.whole(t, got, err)
			if l.broke != tc.broke {
				t.Errorf("broke %d times, want %d", l.broke, tc.broke)
			}
			t.Logf("%s, %d requests, %d at once", took, len(l.asked), l.most)
		})
	}
}

// TestAheadIgnoresSpans: a Source refuses spare connections and sends to the end of the blob.
// No byte is downloaded twice.
func TestAheadIgnoresSpans(t *testing.T) {
	t.Parallel()
	l := &network{content: upstreamtest.Random(3, 64<<20), each: 8 << 20}
	src := func(ctx context.Context, s Span) (*Part, error) {
		if s.Offset > 0 {
			if s.Spare {
				return nil, fmt.Errorf("%w: no ranges here", ErrRefused)
			}
			s.Length = 0 // to the end
		}
		return l.source(ctx, s)
	}
	var got []byte
	synctest.Test(t, func(t *testing.T) {
		st, err := Open(t.Context(), src, 0, NewBuffers(), func(int64, error) {})
		if err != nil {
			t.Fatal(err)
		}
		defer st.Close()
		if got, err = io.ReadAll(st); err != nil {
			t.Fatal(err)
		}
	})
	l.whole(t, got, nil)
}

// TestAhead_ClosedEarly: a download that ends early leaves no connection and no piece behind.
func TestAhead_ClosedEarly(t *testing.T) {
	t.Parallel()
	blob := upstreamtest.Random(4, 96<<20)
	r := NewBuffers()
	for name, tc := range map[string]struct {
		all    int64 // of the link
		at     int64
		cancel bool // the context, before Close
		open   int  // connections then, at least
	}{
		"before the probe":    {at: 1 << 20, open: 1},
		"on trial":            {at: 6 << 20, cancel: true, open: 2},
		"in the pieces":       {at: 20 << 20},
		"later":               {at: 60 << 20, cancel: true, open: 1},
		"with a tail to come": {all: 8 << 20, at: 16<<20 - 1000, open: 2},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := &network{content: blob, each: 8 << 20, all: tc.all, latency: 50 * time.Millisecond}
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				st, err := Open(ctx, l.source, 0, r, func(int64, error) {})
				if err != nil {
					t.Fatal(err)
				}
				if _, err := io.CopyN(io.Discard, st, tc.at); err != nil {
					t.Fatal(err)
				}
				if n := l.opened(); n < tc.open {
					t.Errorf("%d connections; want %d at least", n, tc.open)
				}
				if tc.cancel {
					cancel()
				}
				_ = st.Close()
				if l.open != 0 || len(r.places) != 0 {
					t.Errorf("%d connections and %d pieces are left", l.open, len(r.places))
				}
			})
		})
	}
}

// TestAheadShares: the pieces of all fills together are bounded.
func TestAheadShares(t *testing.T) {
	t.Parallel()
	r := NewBuffers()
	var held [][]byte
	for range maxPieces {
		held = append(held, r.take())
	}
	if r.take() != nil {
		t.Error("more pieces than there may be")
	}
	l := &network{content: upstreamtest.Random(5, 64<<20), each: 8 << 20}
	got, _, _, err := download(t, l, r, 0)
	l.whole(t, got, err)
	if l.most > 2 || len(l.asked) != 2 {
		t.Errorf("%d connections at once and %d requests without room; want one after the other", l.most, len(l.asked))
	}
	for _, b := range held {
		r.give(b)
	}
	if r.take() == nil {
		t.Error("a piece given back cannot be had")
	}
}
