package main

import (
	"container/list"
	"errors"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

// boundedListener accepts a connection only while fewer than its limit are open.
// Where as many are, it closes one that is idle, or has not yet sent a request, for
// the next: clients cannot keep others out by doing nothing. Where all are at work,
// further ones wait in the kernel's queue. A server tells it by track what its
// connections do: a net.Conn that told so itself would hide the *net.TCPConn from
// net/http, and with it sendfile.
type boundedListener struct {
	net.Listener
	slots  chan struct{} // one for each open connection, and for the next
	open   atomic.Int64
	closed chan struct{}
	once   sync.Once     // closes closed
	full   func()        // called when as many are open as may be
	rested chan struct{} // has a value when one has become idle

	mu    sync.Mutex // guards the fields below
	idle  *list.List // connections between two requests, the longest so first
	fresh *list.List // those without a request yet, in the order in which they came
	at    map[net.Conn]resting
}

// resting is where a connection is that nothing is done for.
type resting struct {
	in    *list.List
	place *list.Element
	since time.Time
}

const (
	// freshFor is how long a connection without a request is left alone.
	freshFor = time.Second
	// lookEvery is how often one that waits for a place looks for it.
	lookEvery = 250 * time.Millisecond
)

func newBoundedListener(l net.Listener, limit int, full func()) *boundedListener {
	return &boundedListener{
		Listener: l, slots: make(chan struct{}, limit), closed: make(chan struct{}), full: full, rested: make(chan struct{}, 1),
		idle: list.New(), fresh: list.New(), at: map[net.Conn]resting{},
	}
}

func (l *boundedListener) Accept() (net.Conn, error) {
	if !l.take() {
		return nil, net.ErrClosed
	}
	c, err := l.Listener.Accept()
	if err != nil {
		<-l.slots
		return nil, err
	}
	l.open.Add(1)
	return c, nil
}

// take waits for a slot; false: the listener is closed.
func (l *boundedListener) take() bool {
	select {
	case l.slots <- struct{}{}:
		return true
	default:
	}
	l.full()
	look := time.NewTicker(lookEvery)
	defer look.Stop()
	for {
		l.drop()
		select {
		case l.slots <- struct{}{}:
			return true
		case <-l.closed:
			return false
		case <-l.rested:
		case <-look.C:
		}
	}
}

// drop closes the connection that can be spared best, if there is one. Its server
// notices, and gives its slot back.
func (l *boundedListener) drop() {
	l.mu.Lock()
	front := l.idle.Front()
	if front == nil {
		front = l.fresh.Front()
	}
	if front == nil {
		l.mu.Unlock()
		return
	}
	c := front.Value.(net.Conn)
	if r := l.at[c]; r.in == l.fresh && time.Since(r.since) < freshFor {
		l.mu.Unlock()
		return
	}
	l.leave(c)
	l.mu.Unlock()
	if tcp := tcpOf(c); tcp != nil {
		_ = tcp.Close() // TLS would say goodbye, and wait for that
		return
	}
	_ = c.Close()
}

// leave takes a connection out of its list. l.mu is held.
func (l *boundedListener) leave(c net.Conn) {
	if r, ok := l.at[c]; ok {
		r.in.Remove(r.place)
		delete(l.at, c)
	}
}

// rest puts a connection into a list. l.mu is held.
func (l *boundedListener) rest(c net.Conn, in *list.List) {
	l.at[c] = resting{in, in.PushBack(c), time.Now()}
}

// track is the server's ConnState hook.
func (l *boundedListener) track(c net.Conn, state http.ConnState) {
	l.mu.Lock()
	l.leave(c)
	switch state {
	case http.StateNew:
		l.rest(c, l.fresh)
	case http.StateIdle:
		l.rest(c, l.idle)
	}
	l.mu.Unlock()
	switch state {
	case http.StateIdle:
		select {
		case l.rested <- struct{}{}:
		default: // said already
		}
	case http.StateClosed, http.StateHijacked:
		l.open.Add(-1)
		<-l.slots
	}
}

func (l *boundedListener) Close() error {
	l.once.Do(func() { close(l.closed) })
	if err := l.Listener.Close(); !errors.Is(err, net.ErrClosed) { // its server may have been first
		return err
	}
	return nil
}
