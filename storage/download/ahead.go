package download

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/cachalot-registry/cachalot/task"
)

const (
	// firstPart is how much of a long blob is asked for first. The connection
	// that brings it shows whether more of them are worth it, long before it is
	// at the end, so that no reader waits for the next.
	firstPart = 16 << 20
	// probe is how much the first connection brings before it is judged. Its
	// first quarter says little: TCP starts slowly.
	probe = 4 << 20
	// trial is how much it brings before more connections are judged.
	trial = 1 << 20
	// maxConnections of one fill; maxPieces bounds the pieces in memory of all
	// fills together.
	maxConnections = 8
	maxPieces      = 8
	// pieceSize is how much one of maxConnections is asked for at a time. Of fewer
	// it is less, so that little stands in the way of the front when they are too many.
	pieceSize = 4 << 20
)

// ahead fetches the later pieces of a long blob into memory while the first part
// of it is read, where the connection is what makes that slow. No byte is asked
// for twice:
//
//	0             16 MiB    17        18                       size
//	├── first part ──┼─ piece ─┼─ piece ─┼──── to come, or tail ──┤
//	    stream.body    ───── ahead.pieces ─   ─ ahead.next
//
// The connections double as long as the first one is as quick as it was alone:
// then each has a limit of its own. When it slows down they share one, and the
// last doubling is taken back. Where one connection is enough, or the reader is
// what makes it slow, the rest of the blob is one tail. What a connection that
// broke leaves is fetched by the stream, once it gets there.
//
// Its methods belong to the stream's goroutine, and do nothing on a nil ahead. One
// goroutine fills each piece.
type ahead struct {
	ctx     context.Context
	cancel  context.CancelFunc
	src     Source
	size    int64
	buffers *Buffers
	latency time.Duration // of opening the first part
	running sync.WaitGroup

	pieces  []*piece // in order
	inPiece bool     // the first is the front
	next    int64    // where the next piece begins
	tail    *tail    // from next on; nil: none

	connections int           // wanted, with that of the front
	settled     bool          // their number is final
	rate        float64       // of the first one alone, in bytes a second
	front       int64         // bytes that came to the front, but for pieces
	waited      time.Duration // for them
	since       mark          // what a rate is measured from; zero: not begun
}

// mark is a moment to measure from.
type mark struct {
	at    time.Time
	front int64
}

// newAhead follows the stream's first part, which took latency to open.
func newAhead(ctx context.Context, src Source, s *Stream, r *Buffers, latency time.Duration) *ahead {
	a := &ahead{src: src, size: s.size, next: s.end, buffers: r, latency: latency, connections: 1}
	a.ctx, a.cancel = context.WithCancel(ctx)
	return a
}

// read reads from the part in front.
func (a *ahead) read(body io.Reader, p []byte) (int, error) {
	if _, fetched := body.(*piece); a == nil || fetched {
		return body.Read(p)
	}
	began := time.Now()
	n, err := body.Read(p)
	a.waited += time.Since(began)
	a.front += int64(n)
	return n, err
}

// steer is called whenever some of the part in front was read, which has left
// bytes to go. It opens the pieces to be fetched while that is read.
func (a *ahead) steer(left int64) {
	if a == nil || a.next >= a.size {
		return
	}
	switch {
	case a.settled && a.connections == 1:
		if a.urgent(left) {
			a.openTail()
		}
		return
	case a.connections == 1:
		a.judgeFirst(left)
	case !a.settled:
		a.judge()
	}
	for n := a.active(); n < a.connections && a.next < a.size; n++ {
		buf := a.buffers.take()
		if buf == nil {
			return
		}
		a.fetch(buf[:pieceSize/maxConnections*a.connections])
	}
}

// urgent says that what follows must be asked for now to be there in time.
func (a *ahead) urgent(left int64) bool { return float64(left) <= 2*a.latency.Seconds()*a.rate }

// active is how many connections are at work.
func (a *ahead) active() int {
	n := 0
	if !a.inPiece {
		n++
	}
	for _, p := range a.pieces {
		if !p.state().done {
			n++
		}
	}
	return n
}

// measured is the rate of the front since the mark. ok is false until that has
// been set and got bytes have come.
func (a *ahead) measured(got int64) (rate float64, ok bool) {
	if a.since.at.IsZero() {
		a.since, a.waited = mark{time.Now(), a.front}, 0
		return 0, false
	}
	n := a.front - a.since.front
	return float64(n) / time.Since(a.since.at).Seconds(), n >= got
}

// judgeFirst decides whether more connections are worth a trial.
func (a *ahead) judgeFirst(left int64) {
	if a.front < probe/4 {
		return
	}
	var ok bool
	if a.rate, ok = a.measured(probe - probe/4); !ok && (a.front < probe/2 || !a.urgent(left)) {
		return
	}
	if 2*a.waited <= time.Since(a.since.at) {
		a.settled = true // the network is quicker than what is done with it
		return
	}
	a.connections, a.since = 2, mark{}
}

// judge compares the front's rate with what it was alone.
func (a *ahead) judge() {
	for _, p := range a.pieces {
		switch st := p.state(); {
		case st.err != nil:
			a.giveUp()
			return
		case st.n == 0 && a.since.at.IsZero():
			return // it is at work once they all are
		}
	}
	rate, ok := a.measured(trial)
	switch {
	case !ok:
	case rate >= a.rate*3/4:
		a.settled = a.connections == maxConnections
		a.connections, a.since = min(2*a.connections, maxConnections), mark{}
	case a.connections == 2:
		a.giveUp()
	default:
		a.connections, a.settled = a.connections/2, true
	}
}

// giveUp leaves what no piece has to one connection. The front has what it has.
func (a *ahead) giveUp() {
	a.connections, a.settled = 1, true
	keep := 0
	if a.inPiece {
		keep = 1
	}
	for n := len(a.pieces); n > keep && a.pieces[n-1].empty(); n-- {
		a.next = a.pieces[n-1].start
		a.buffers.give(a.pieces[n-1].buf)
		a.pieces = a.pieces[:n-1]
	}
}

// take returns what is to be read from pos on, and where that ends. Without a
// body, it was not asked for yet.
func (a *ahead) take(pos int64) (io.ReadCloser, int64) {
	for len(a.pieces) > 0 && (a.pieces[0].end <= pos || a.pieces[0].empty()) {
		a.buffers.give(a.pieces[0].buf)
		a.pieces = a.pieces[1:]
	}
	a.inPiece = len(a.pieces) > 0 && a.pieces[0].start == pos
	switch {
	case a.inPiece:
		return a.pieces[0], a.pieces[0].end
	case len(a.pieces) > 0:
		return nil, a.pieces[0].start
	case a.tail == nil:
		a.next = a.size // the stream asks for it
		return nil, a.size
	case a.tail.at > pos:
		return nil, a.tail.at
	}
	return a.tail.take(), a.size
}

// close ends all that is under way.
func (a *ahead) close() {
	if a == nil {
		return
	}
	a.cancel()
	a.running.Wait()
	for _, p := range a.pieces {
		a.buffers.give(p.buf)
	}
	if a.tail != nil {
		a.tail.drop()
	}
	a.pieces, a.tail, a.next = nil, nil, a.size
}

// fetch begins a piece.
func (a *ahead) fetch(buf []byte) {
	p := &piece{start: a.next, end: min(a.next+int64(len(buf)), a.size), buf: buf}
	p.more.L = &p.mu
	a.pieces = append(a.pieces, p)
	a.next = p.end
	a.running.Go(func() {
		err := task.Try("download of a piece", func() error { return a.fill(p) })
		p.publish(func(st *pieceState) { st.done, st.err = true, err })
	})
}

func (a *ahead) fill(p *piece) error {
	part, err := a.open(Span{Offset: p.start, Length: p.end - p.start, Spare: true})
	if err != nil {
		return err
	}
	defer func() { _ = part.Body.Close() }() // read to its end, or given up
	for n := 0; p.start+int64(n) < p.end; {
		m, err := part.Body.Read(p.buf[n : p.end-p.start])
		n += m
		p.publish(func(st *pieceState) { st.n = n })
		if err != nil && p.start+int64(n) < p.end {
			return err
		}
	}
	return nil
}

// open asks for just the span, or to the end.
func (a *ahead) open(s Span) (*Part, error) {
	part, err := a.src(a.ctx, s)
	if err != nil {
		return nil, err
	}
	if part.Offset != s.Offset || part.Size != a.size || s.Length > 0 && part.End != s.Offset+s.Length {
		err := fmt.Errorf("source opened %d to %d of %d bytes, asked for %d of %d", part.Offset, part.End, part.Size, s.Length, a.size)
		return nil, errors.Join(err, part.Body.Close())
	}
	return part, nil
}

// openTail leaves all from next on to one connection.
func (a *ahead) openTail() {
	t := &tail{at: a.next, opened: make(chan struct{})}
	a.tail, a.next = t, a.size
	a.running.Go(task.Guard("download", func() {
		defer close(t.opened)
		if part, err := a.open(Span{Offset: t.at}); err == nil { // or else the stream will ask
			t.body = part.Body
		}
	}))
}

// piece is a span of the blob that is fetched into memory. Its reader waits for it.
type piece struct {
	start, end int64
	buf        []byte
	read       int // belongs to the reader

	mu   sync.Mutex // guards st
	more sync.Cond  // st has changed
	st   pieceState
}

type pieceState struct {
	n    int // bytes of buf that are there
	done bool
	err  error // of the source, where not all came
}

func (p *piece) state() pieceState {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.st
}

func (p *piece) publish(change func(*pieceState)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	change(&p.st)
	p.more.Broadcast()
}

// empty says that nothing came, nor will.
func (p *piece) empty() bool {
	st := p.state()
	return st.done && st.n == 0
}

func (p *piece) Read(b []byte) (int, error) {
	p.mu.Lock()
	for p.st.n == p.read && !p.st.done {
		p.more.Wait()
	}
	st := p.st
	p.mu.Unlock()
	if p.read == st.n {
		return 0, io.ErrUnexpectedEOF // what a further connection was refused, the stream may get
	}
	n := copy(b, p.buf[p.read:st.n])
	p.read += n
	return n, nil
}

// Close does nothing: the buffer goes back when the next piece is taken.
func (p *piece) Close() error { return nil }

// tail is the rest of a blob, opened before it is read.
type tail struct {
	at     int64
	opened chan struct{}
	body   io.ReadCloser // after opened; nil: not to be had, or taken
}

func (t *tail) take() io.ReadCloser {
	<-t.opened
	body := t.body
	t.body = nil
	return body
}

func (t *tail) drop() {
	if body := t.take(); body != nil {
		_ = body.Close() // given up
	}
}
