package main

import (
	"container/list"
	"errors"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cachalot-registry/cachalot/bounds"
	"github.com/cachalot-registry/cachalot/task"
)

// boundedListener accepts a connection only while fewer than its limit are open.
// Where as many are, it closes one that is idle, or has not yet sent a request, for
// the next, but none whose bytes the server has yet to read: clients cannot keep others
// out by doing nothing. Further ones wait for a place, their clients in turn; past the
// queue's length they do so in the kernel's. The last share is for clients with less than
// a share: others' connections are closed at once there, for each that they have idle.
//
// A server tells the listener by track what its connections do: a net.Conn that told so
// itself would hide the *net.TCPConn from net/http, and with it sendfile.
type boundedListener struct {
	net.Listener
	places  *bounds.Bulkhead
	waiting *acceptQueue
	begin   sync.Once                      // starts receive
	failed  chan error                     // what receive has met
	closed  chan struct{}                  // ends receive
	once    sync.Once                      // closes closed
	full    func()                         // called when one has to wait for a place, or its client has too many
	freed   chan struct{}                  // has a value when a connection has become idle, or ended
	trusted atomic.Pointer[[]netip.Prefix] // load balancers, whose connections are many clients'

	mu      sync.Mutex                 // guards the fields below
	holders map[net.Conn]bounds.Holder // whose place an open connection has, by what it is below TLS
	idle    *list.List                 // connections between two requests, the longest so first
	fresh   *list.List                 // those without a request yet, in the order in which they came
	at      map[net.Conn]resting
}

// resting is where a connection is that nothing is done for.
type resting struct {
	in    *list.List
	place *list.Element
	since time.Time
}

const (
	// freshFor is how long a connection without a request is left alone.
	freshFor = 100 * time.Millisecond
	// lookEvery is how often one that waits for a place looks for it.
	lookEvery = 20 * time.Millisecond
	// lookAt is how many connections are looked at for one that can be spared.
	lookAt = 256
	// maxWaiting is how many connections wait in turn. The kernel keeps some 64 KiB for
	// each, which its client may send ahead.
	maxWaiting = 512
)

func newBoundedListener(l net.Listener, limit int, share float64, full func()) *boundedListener {
	return &boundedListener{
		Listener: l, places: bounds.NewBulkhead(limit, share), waiting: newAcceptQueue(maxWaiting),
		failed: make(chan error), closed: make(chan struct{}), full: full, freed: make(chan struct{}, 1),
		holders: map[net.Conn]bounds.Holder{}, idle: list.New(), fresh: list.New(), at: map[net.Conn]resting{},
	}
}

// trust says which load balancers' connections are of many clients.
func (l *boundedListener) trust(proxies []netip.Prefix) { l.trusted.Store(&proxies) }

// holder is whose place a connection takes.
func (l *boundedListener) holder(c net.Conn) bounds.Holder {
	at, err := netip.ParseAddrPort(c.RemoteAddr().String())
	if err != nil {
		return bounds.Holder{}
	}
	address := at.Addr().Unmap()
	if trusted := l.trusted.Load(); trusted != nil {
		for _, proxies := range *trusted {
			if proxies.Contains(address) {
				return bounds.Holder{}
			}
		}
	}
	return bounds.Holder{Client: bounds.Client(address.String())}
}

func (l *boundedListener) Accept() (net.Conn, error) {
	l.begin.Do(func() {
		go func() {
			if err := task.Try("accept", l.receive); err != nil {
				l.fail(err)
			}
			for c := l.waiting.next(); c != nil; c = l.waiting.next() {
				_ = c.Close() // nothing was read
			}
		}()
	})
	for {
		select {
		case <-l.closed:
			return nil, net.ErrClosed
		case err := <-l.failed:
			return nil, err
		case <-l.waiting.ready:
		}
		open := l.wait()
		c := l.waiting.next()
		switch {
		case c == nil: // the listener is closed
		case open && l.enter(c):
			return c, nil
		default:
			l.full()
			_ = c.Close() // nothing was read
		}
	}
}

// receive moves connections from the kernel's queue into that of clients, until the
// listener is closed.
func (l *boundedListener) receive() error {
	for {
		c, err := l.Listener.Accept()
		switch {
		case err == nil && l.queue(c):
		case err == nil || errors.Is(err, net.ErrClosed):
			return err
		default:
			l.fail(err) // there may be too few files for the moment
		}
	}
}

// fail tells Accept.
func (l *boundedListener) fail(err error) {
	select {
	case l.failed <- err:
	case <-l.closed:
	}
}

// queue has a connection wait for its turn; false: the listener is closed.
//
// While places are taken by clients that say nothing, the one with the most loses its
// last for another one. Where all are at work, they wait in the kernel's queue: none of
// them is wrong to be here.
func (l *boundedListener) queue(c net.Conn) bool {
	client := l.holder(c).Client
	if client == "" { // one of many clients
		client = c.RemoteAddr().String()
	}
	for !l.waiting.add(client, c) {
		if l.spares() {
			if last := l.waiting.displace(client); last != nil {
				l.full()
				_ = last.Close() // nothing was read
				continue
			}
		}
		select {
		case <-l.waiting.left:
		case <-l.closed:
			_ = c.Close()
			return false
		}
	}
	return true
}

// spares reports whether a connection does nothing.
func (l *boundedListener) spares() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.at) > 0
}

// enter gives a connection a place, if need be that of an idle one of the same client.
func (l *boundedListener) enter(c net.Conn) bool {
	holder := l.holder(c)
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.places.Enter(holder) {
		spare := l.idleOf(holder)
		if spare == nil {
			return false
		}
		l.leave(spare)
		delete(l.holders, below(spare))
		hangUp(spare)
	}
	l.holders[c] = holder
	return true
}

// idleOf is an idle connection of a client, if one is among those that are so the
// longest. l.mu is held.
func (l *boundedListener) idleOf(h bounds.Holder) net.Conn {
	return first(l.idle, func(c net.Conn) bool { return l.holders[below(c)] == h })
}

// first is the first connection of a list that can be closed, and is wanted, if it is
// among the first that are looked at.
func first(in *list.List, wanted func(net.Conn) bool) net.Conn {
	e := in.Front()
	for range lookAt {
		if e == nil {
			return nil
		}
		if c := e.Value.(net.Conn); wanted(c) && !unread(c) {
			return c
		}
		e = e.Next()
	}
	return nil
}

// unread is whether something waits to be read from a connection: its request has come,
// and the server has not had the time to look.
func unread(c net.Conn) bool {
	tcp := tcpOf(c)
	if tcp == nil {
		return false
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return false
	}
	n := 0
	if raw.Control(func(fd uintptr) { n, _, err = unix.Recvfrom(int(fd), make([]byte, 1), unix.MSG_PEEK|unix.MSG_DONTWAIT) }) != nil {
		return false // it is closed
	}
	return err == nil && n > 0 // 0: its client has closed it
}

// wait returns when a place is free; false: the listener is closed.
func (l *boundedListener) wait() bool {
	if l.places.Taken() < l.places.Limit() {
		return true
	}
	l.full()
	look := time.NewTicker(lookEvery)
	defer look.Stop()
	for {
		l.drop()
		select {
		case <-l.closed:
			return false
		case <-l.freed:
		case <-look.C:
		}
		if l.places.Taken() < l.places.Limit() {
			return true
		}
	}
}

// drop closes the connection that can be spared best, if there is one. Its server
// notices, and gives its place back.
func (l *boundedListener) drop() {
	l.mu.Lock()
	c := first(l.idle, func(net.Conn) bool { return true })
	if c == nil {
		c = first(l.fresh, func(c net.Conn) bool { return time.Since(l.at[c].since) >= freshFor })
	}
	if c != nil {
		l.leave(c)
	}
	l.mu.Unlock()
	if c != nil {
		hangUp(c)
	}
}

// hangUp closes a connection without a goodbye, which TLS would wait for.
func hangUp(c net.Conn) { _ = below(c).Close() } // its server closes it again

// below is what lies below TLS.
func below(c net.Conn) net.Conn {
	if tcp := tcpOf(c); tcp != nil {
		return tcp
	}
	return c
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
	case http.StateClosed, http.StateHijacked:
		if holder, ok := l.holders[below(c)]; ok { // or else another one has its place
			delete(l.holders, below(c))
			l.places.Leave(holder)
		}
	}
	l.mu.Unlock()
	if state == http.StateNew || state == http.StateActive {
		return
	}
	select {
	case l.freed <- struct{}{}:
	default: // said already
	}
}

func (l *boundedListener) Close() error {
	l.once.Do(func() { close(l.closed) })
	if err := l.Listener.Close(); !errors.Is(err, net.ErrClosed) { // its server may have been first
		return err
	}
	return nil
}
