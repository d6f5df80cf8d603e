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

// boundedListener accepts a connection only while fewer than its limit are open.
// Where as many are, it closes one that is idle, or has not yet sent a request, for
// the next, but none whose bytes the server has yet to read: clients cannot keep others
// out by doing nothing. Further ones wait for a place, their clients in turn; past the
// queue's length they do so in the kernel's. The last share is for clients with less than
// a share: others' connections are closed at once there, for each that they have idle.
//
// A server tells the listener by track what its connections do.
type boundedListener struct {
	*net.TCPListener
	places  *bounds.Bulkhead
	waiting *acceptQueue
	begin   sync.Once                      // starts receive
	failed  chan error                     // what receive has met
	closed  chan struct{}                  // ends receive
	once    sync.Once                      // closes closed
	full    func()                         // called when one has to wait for a place, or its client has too many
	freed   chan struct{}                  // has a value when a connection has become idle, or ended
	trusted atomic.Pointer[[]netip.Prefix] // load balancers, whose connections are many clients'

	mu      sync.Mutex               // guards the fields below, and those of connections
	open    map[*connection]struct{} // those with a place
	resting int                      // how many of them nothing is done for
	idle    *list.List               // connections between two requests, the longest so first
	fresh   *list.List               // those without a request yet, in the order in which they came
}

// connection is an accepted one: net/http sends files by its sendfile. It stays in its list
// while it is at work, until one that rests is looked for there: a request costs a move.
type connection struct {
	*net.TCPConn

	head   head // of the request that comes; used by Read alone, and by track between requests
	sealed bool // it carries TLS, and its bytes are no head; set before it is read
	holder bounds.Holder
	gone   bool          // it has no place any more
	rests  bool          // nothing is done for it
	in     *list.List    // nil: none
	place  *list.Element // in there
	since  time.Time     // when it came to rest without a request
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

func newBoundedListener(l *net.TCPListener, limit int, share float64, full func()) *boundedListener {
	return &boundedListener{
		TCPListener: l, places: bounds.NewBulkhead(limit, share), waiting: newAcceptQueue(maxWaiting),
		failed: make(chan error), closed: make(chan struct{}), full: full, freed: make(chan struct{}, 1),
		open: map[*connection]struct{}{}, idle: list.New(), fresh: list.New(),
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

// receive moves connections from the kernel's queue into that of clients, until the
// listener is closed.
func (l *boundedListener) receive() error {
	for {
		c, err := l.AcceptTCP()
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
func (l *boundedListener) queue(c *net.TCPConn) bool {
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
	return l.resting > 0
}

// atWork are the connections for which something is done.
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

// enter gives a connection a place, if need be that of an idle one of the same client;
// nil: there is none.
func (l *boundedListener) enter(c *net.TCPConn) *connection {
	holder := l.holder(c)
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.places.Enter(holder) {
		spare := l.first(l.idle, func(c *connection) bool { return c.holder == holder })
		if spare == nil {
			return nil
		}
		l.ends(spare) // and its place is the next one's
		spare.hangUp()
	}
	entered := &connection{TCPConn: c, holder: holder}
	l.open[entered] = struct{}{}
	return entered
}

// first is the first connection of a list that rests, can be closed, and is wanted, if
// it is among the first that are looked at. Those at work leave the list. l.mu is held.
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

// unread is whether something waits to be read from a connection: its request has come,
// and the server has not had the time to look.
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

// drop closes the connection that can be spared best, if there is one. Its server
// notices, and gives its place back.
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

// hangUp closes a connection without a goodbye, which TLS would wait for.
func (c *connection) hangUp() { _ = c.Close() } // its server closes it again

// connectionOf is the accepted connection that a server has, TLS or not.
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

// leave takes a connection out of its list. l.mu is held.
func (l *boundedListener) leave(c *connection) {
	if c.in != nil {
		c.in.Remove(c.place)
		c.in, c.place = nil, nil
	}
	l.work(c)
}

// ends forgets a connection. l.mu is held.
func (l *boundedListener) ends(c *connection) {
	l.leave(c)
	delete(l.open, c)
	c.gone = true
}

// work: something is done for a connection. l.mu is held.
func (l *boundedListener) work(c *connection) {
	if c.rests {
		c.rests = false
		l.resting--
	}
}

// rest: nothing is done for a connection. It is the last of a list then. l.mu is held.
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
			c.head = head{} // nothing reads now
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
	default: // said already
	}
}

func (l *boundedListener) Close() error {
	l.once.Do(func() { close(l.closed) })
	if err := l.TCPListener.Close(); !errors.Is(err, net.ErrClosed) { // its server may have been first
		return err
	}
	return nil
}
