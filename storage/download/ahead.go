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
	// firstPart is how much of a long blob is requested first. Its connection shows
	// whether more connections are worth it, long before the end of the part, so
	// that no reader waits for the next part.
	firstPart = 16 << 20
	// probe is how much the first connection brings before its rate is judged.
	// The first quarter says little: TCP starts slowly.
	probe = 4 << 20
	// trial is how much it brings before the effect of more connections is judged.
	trial = 1 << 20
	// maxConnections bounds the connections of one stream; maxPieces bounds the
	// pieces in memory of all streams together.
	maxConnections = 8
	maxPieces      = 8
	// pieceSize is the size of a piece with maxConnections. With fewer connections a
	// piece is smaller, so that it delays the front little if they are too many.
	pieceSize = 4 << 20
)

// ahead fetches the later pieces of a long blob into memory while the first part
// of it is read, if the connection is the bottleneck. No byte is requested twice:
//
//	0             16 MiB    17        18                       size
//	├── first part ──┼─ piece ─┼─ piece ─┼──── to come, or tail ──┤
//	    stream.body    ───── ahead.pieces ─   ─ ahead.next
//
// The number of connections doubles as long as the first one is as fast as it was
// alone: then each has a limit of its own. When the first one slows down, they share
// a limit, and the last doubling is taken back. If one connection is enough, or the
// reader is the bottleneck, the rest of the blob is one tail. If a connection breaks,
// the stream fetches the rest of its piece when it gets there.
//
// Its methods belong to the stream's goroutine; read, steer and close accept a nil
// ahead. One goroutine fills each piece.
type ahead struct {
	ctx     context.Context
	cancel  context.CancelFunc
	src     Source
	size    int64
	buffers *Buffers
	latency time.Duration // of opening the first part
	running sync.WaitGroup

	pieces  []*piece // in order
	inPiece bool     // the first of them is the front: the stream reads it
	next    int64    // where the next piece begins
	tail    *tail    // the rest of the blob over one connection; nil: none

	connections int           // how many are wanted, with that of the front
	settled     bool          // connections is final
	rate        float64       // of the first connection alone, in bytes per second
	front       int64         // bytes read from the front, except from pieces
	waited      time.Duration // for these bytes
	since       mark          // start of the measurement of a rate; zero: not begun
}

// mark is the start of a measurement.
type mark struct {
	at    time.Time
	front int64
}

// newAhead returns the ahead of a stream whose first part took latency to open.
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

// steer is called after each read from the part in front; left is how many of its
// bytes are still to come. It opens the pieces that are fetched while that part is read.
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

// urgent reports whether the next part must be requested now to be there in time.
func (a *ahead) urgent(left int64) bool { return float64(left) <= 2*a.latency.Seconds()*a.rate }

// active returns how many connections are at work.
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

// measured returns the rate of the front since the mark. ok is false until the mark is
// set and got bytes have come after it.
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
		a.settled = true // the network is faster than the reader
		return
	}
	a.connections, a.since = 2, mark{}
}

// judge compares the front's rate with the rate that it had alone.
func (a *ahead) judge() {
	for _, p := range a.pieces {
		switch st := p.state(); {
		case st.err != nil:
			a.giveUp()
			return
		case st.n == 0 && a.since.at.IsZero():
			return // the measurement begins when all pieces have bytes
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

// giveUp leaves all that no piece has to one connection. The piece in front stays.
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

// take returns the body to read from pos on, and where it ends. If the body is nil, the
// stream has to request these bytes.
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
		a.next = a.size // the stream requests it
		return nil, a.size
	case a.tail.at > pos:
		return nil, a.tail.at
	}
	return a.tail.take(), a.size
}

// close ends all requests under way.
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

// fetch starts to download a piece.
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

// open requests exactly the span; without a Length, all to the end.
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

// openTail requests all bytes from next on over one connection.
func (a *ahead) openTail() {
	t := &tail{at: a.next, opened: make(chan struct{})}
	a.tail, a.next = t, a.size
	a.running.Go(task.Guard("download", func() {
		defer close(t.opened)
		if part, err := a.open(Span{Offset: t.at}); err == nil { // otherwise the stream requests it
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
	err  error // of the source, if bytes are missing
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

// empty reports whether no byte has come, and none will.
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
		return 0, io.ErrUnexpectedEOF // the stream requests the rest: it may get what a spare request was refused
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
	body   io.ReadCloser // set before opened is closed; nil: not available, or taken
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
