package server

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

// boundedListener accepts a connection only while fewer than its limit are open. At the limit
// it closes, for the next connection, one that is idle or has not yet sent a request, but none
// with bytes that the server has yet to read: clients cannot keep others out by doing nothing.
// If there is none, connections wait in acceptQueue and, when that is full, in the kernel's
// queue. The last share of the places is for clients with less than a share: for a new
// connection of another client it closes an idle one of the same client or, if there is none,
// the new one.
//
// The server reports the states of its connections by track.
type boundedListener struct {
	*net.TCPListener
	places  *bounds.Bulkhead
	waiting *acceptQueue
	begin   sync.Once                      // starts receive
	failed  chan error                     // errors of receive
	closed  chan struct{}                  // ends receive
	once    sync.Once                      // closes closed
	full    func()                         // called when a connection must wait, or its client has too many
	freed   chan struct{}                  // has a value when a connection has become idle, or ended
	trusted atomic.Pointer[[]netip.Prefix] // load balancers: their connections are of many clients

	mu      sync.Mutex               // guards the fields below, and those of connections
	open    map[*connection]struct{} // connections with a place
	resting int                      // how many of them have no request in progress
	idle    *list.List               // connections between two requests, the longest idle first
	fresh   *list.List               // connections without a request so far, the oldest first
}

// connection is an accepted connection. net/http sends files by its sendfile. It stays in its
// list while a request is in progress, until first removes it: so a request costs only one move
// in the list.
type connection struct {
	*net.TCPConn

	head   head // of the next request; used by Read alone, and by track between requests
	sealed bool // it carries TLS, so its bytes are not a head; set before the first Read
	holder bounds.Holder
	gone   bool          // it no longer has a place
	rests  bool          // no request is in progress
	in     *list.List    // its list; nil: none
	place  *list.Element // its element in that list
	since  time.Time     // when the server accepted it
}

const (
	// freshFor is how long a new connection may take to send a request before it may be closed.
	freshFor = 100 * time.Millisecond
	// lookEvery is how often wait looks for a free place.
	lookEvery = 20 * time.Millisecond
	// lookAt is how many connections first looks at, to find one that can be closed.
	lookAt = 256
	// maxWaiting is the length of acceptQueue. The kernel keeps some 64 KiB for each
	// connection, which its client may send ahead.
	maxWaiting = 512
)

func newBoundedListener(l *net.TCPListener, limit int, share float64, full func()) *boundedListener {
	return &boundedListener{
		TCPListener: l, places: bounds.NewBulkhead(limit, share), waiting: newAcceptQueue(maxWaiting),
		failed: make(chan error), closed: make(chan struct{}), full: full, freed: make(chan struct{}, 1),
		open: map[*connection]struct{}{}, idle: list.New(), fresh: list.New(),
	}
}

// trust sets the load balancers, whose connections are of many clients.
func (l *boundedListener) trust(proxies []netip.Prefix) { l.trusted.Store(&proxies) }

// holder returns the holder of a connection's place.
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
		if c == nil { // the listener is closed
			continue
		}
		if open {
			if entered := l.enter(c); entered != nil {
				return entered, nil
			}
		}
		l.full()
		_ = c.Close() // nothing was read
	}
}

// receive moves connections from the kernel's queue into acceptQueue, until the listener is
// closed.
func (l *boundedListener) receive() error {
	for {
		c, err := l.AcceptTCP()
		switch {
		case err == nil && l.queue(c):
		case err == nil || errors.Is(err, net.ErrClosed):
			return err
		default:
			l.fail(err) // such as too many open files, which may pass
		}
	}
}

// fail passes an error to Accept.
func (l *boundedListener) fail(err error) {
	select {
	case l.failed <- err:
	case <-l.closed:
	}
}

// queue adds a connection to acceptQueue; false: the listener is closed.
//
// If acceptQueue is full, and an open connection has no request in progress, the client with
// the most waiting connections loses its last one. Otherwise receive waits, and further
// connections stay in the kernel's queue: if all open ones have requests in progress, no client
// misuses its places.
func (l *boundedListener) queue(c *net.TCPConn) bool {
	client := l.holder(c).Client
	if client == "" { // behind a load balancer: one client for each connection
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

// spares reports whether an open connection has no request in progress.
func (l *boundedListener) spares() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.resting > 0
}

// atWork returns the connections with a request in progress.
func (l *boundedListener) atWork() []*net.TCPConn {
	l.mu.Lock()
	defer l.mu.Unlock()
	working := make([]*net.TCPConn, 0, len(l.open)-l.resting)
	for c := range l.open {
		if !c.rests {
			working = append(working, c.TCPConn)
		}
	}
	return working
}

// enter gives a connection a place, if necessary that of an idle connection of the same client,
// which it closes; nil: there is no place.
func (l *boundedListener) enter(c *net.TCPConn) *connection {
	holder := l.holder(c)
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.places.Enter(holder) {
		spare := l.first(l.idle, func(c *connection) bool { return c.holder == holder })
		if spare == nil {
			return nil
		}
		l.ends(spare) // the new connection takes its place
		spare.hangUp()
	}
	entered := &connection{TCPConn: c, holder: holder}
	l.open[entered] = struct{}{}
	return entered
}

// first returns the first connection of a list that is wanted, has no request in progress and
// no unread bytes; nil: there is none among the first that it looks at. It removes connections
// with a request in progress from the list. l.mu is held.
func (l *boundedListener) first(in *list.List, wanted func(*connection) bool) *connection {
	looked := 0
	for e := in.Front(); e != nil && looked < lookAt; {
		c := e.Value.(*connection)
		e = e.Next()
		if !c.rests {
			l.leave(c)
			continue
		}
		if wanted(c) && !unread(c.TCPConn) {
			return c
		}
		looked++
	}
	return nil
}

// unread reports whether a connection has bytes that the server has not read yet, such as a new
// request.
func unread(c *net.TCPConn) bool {
	raw, err := c.SyscallConn()
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

// drop closes the connection that has been idle for longest; if there is none, the oldest one
// without a request. The server notices, and gives its place back.
func (l *boundedListener) drop() {
	l.mu.Lock()
	c := l.first(l.idle, func(*connection) bool { return true })
	if c == nil {
		c = l.first(l.fresh, func(c *connection) bool { return time.Since(c.since) >= freshFor })
	}
	if c != nil {
		l.leave(c)
	}
	l.mu.Unlock()
	if c != nil {
		c.hangUp()
	}
}

// Read refuses a request's head with too many lines.
func (c *connection) Read(p []byte) (int, error) {
	n, err := c.TCPConn.Read(p)
	if !c.sealed && c.head.exceeds(p[:n]) {
		return 0, refuseHead(c.TCPConn)
	}
	return n, err
}

// hangUp closes a connection without the close message of TLS, for which it would have to wait.
func (c *connection) hangUp() { _ = c.Close() } // the server closes it again

// connectionOf returns the accepted connection below that of a server, which may be TLS.
func connectionOf(c net.Conn) *connection {
	for {
		switch below := c.(type) {
		case *connection:
			return below
		case interface{ NetConn() net.Conn }:
			c = below.NetConn()
		default:
			return nil // of another listener
		}
	}
}

// leave removes a connection from its list. l.mu is held.
func (l *boundedListener) leave(c *connection) {
	if c.in != nil {
		c.in.Remove(c.place)
		c.in, c.place = nil, nil
	}
	l.work(c)
}

// ends removes a connection that has ended. l.mu is held.
func (l *boundedListener) ends(c *connection) {
	l.leave(c)
	delete(l.open, c)
	c.gone = true
}

// work records that a connection has a request in progress. l.mu is held.
func (l *boundedListener) work(c *connection) {
	if c.rests {
		c.rests = false
		l.resting--
	}
}

// rest records that a connection has no request in progress, and makes it the last of a list.
// l.mu is held.
func (l *boundedListener) rest(c *connection, in *list.List) {
	if c.in == in {
		in.MoveToBack(c.place)
	} else {
		l.leave(c)
		c.in, c.place = in, in.PushBack(c)
	}
	if !c.rests {
		c.rests = true
		l.resting++
	}
}

// track is the server's ConnState hook.
func (l *boundedListener) track(conn net.Conn, state http.ConnState) {
	c := connectionOf(conn)
	l.mu.Lock()
	if c != nil && !c.gone {
		switch state {
		case http.StateNew:
			c.since = time.Now()
			l.rest(c, l.fresh)
		case http.StateActive:
			l.work(c)
		case http.StateIdle:
			c.head = head{} // no Read runs now
			l.rest(c, l.idle)
		case http.StateClosed, http.StateHijacked:
			l.ends(c)
			l.places.Leave(c.holder)
		}
	}
	l.mu.Unlock()
	if state == http.StateNew || state == http.StateActive {
		return
	}
	select {
	case l.freed <- struct{}{}:
	default: // signaled already
	}
}

func (l *boundedListener) Close() error {
	l.once.Do(func() { close(l.closed) })
	if err := l.TCPListener.Close(); !errors.Is(err, net.ErrClosed) { // the server may have closed it before
		return err
	}
	return nil
}
