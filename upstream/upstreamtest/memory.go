package upstreamtest

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http/httptrace"
	"sync"
	"sync/atomic"
	"syscall"

	"google.golang.org/grpc/test/bufconn"
)

// Memory is a network in memory. Servers listen at its addresses as on loopback. Its waits are
// durably blocking for synctest: in a bubble they take no time.
type Memory struct {
	mu        sync.Mutex // guards all below
	listeners map[string]*memoryListener
	ports     int // given out so far
}

// NewMemory makes a network.
func NewMemory() *Memory { return &Memory{listeners: map[string]*memoryListener{}, ports: 1023} }

// Listen listens at an address, or at any port of 127.0.0.1 that was never used.
func (m *Memory) Listen(address string) (net.Listener, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if address == anyPort {
		m.ports++
		address = fmt.Sprintf("127.0.0.1:%d", m.ports)
	}
	if m.listeners[address] != nil {
		return nil, &net.OpError{Op: "listen", Net: "tcp", Err: syscall.EADDRINUSE}
	}
	l := &memoryListener{network: m, address: memoryAddr(address), conns: make(chan net.Conn), ended: make(chan struct{})}
	m.listeners[address] = l
	return l, nil
}

// DialContext connects as a [net.Dialer] does.
func (m *Memory) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	if trace := httptrace.ContextClientTrace(ctx); trace != nil && trace.ConnectStart != nil {
		trace.ConnectStart(network, address)
	}
	m.mu.Lock()
	l := m.listeners[address]
	m.mu.Unlock()
	refused := &net.OpError{Op: "dial", Net: network, Addr: memoryAddr(address), Err: syscall.ECONNREFUSED}
	if l == nil {
		return nil, refused
	}
	client, server := pipe(l.address)
	select {
	case l.conns <- server:
		return client, nil
	case <-l.ended:
		return nil, refused
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// pipe returns both sides of a connection, with buffers as those of the kernel.
func pipe(to memoryAddr) (client, server net.Conn) {
	l := bufconn.Listen(16 << 10)
	accepted := make(chan net.Conn, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			panic(err) // it is never closed
		}
		accepted <- c
	}()
	c, err := l.Dial()
	if err != nil {
		panic(err)
	}
	reset := new(atomic.Bool)
	return &memoryConn{c, to, reset}, &memoryConn{<-accepted, to, reset}
}

type memoryListener struct {
	network *Memory
	address memoryAddr
	conns   chan net.Conn
	once    sync.Once
	ended   chan struct{}
}

func (l *memoryListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.ended:
		return nil, net.ErrClosed
	}
}

func (l *memoryListener) Close() error {
	l.once.Do(func() {
		close(l.ended)
		l.network.mu.Lock()
		defer l.network.mu.Unlock()
		delete(l.network.listeners, string(l.address))
	})
	return nil
}

func (l *memoryListener) Addr() net.Addr { return l.address }

type memoryAddr string

func (memoryAddr) Network() string  { return "tcp" }
func (a memoryAddr) String() string { return string(a) }

// memoryConn is one side of a pipe.
type memoryConn struct {
	net.Conn
	server memoryAddr
	reset  *atomic.Bool // shared by both sides
}

func (c *memoryConn) LocalAddr() net.Addr  { return c.server }
func (c *memoryConn) RemoteAddr() net.Addr { return c.server }

func (c *memoryConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if err == io.EOF && c.reset.Load() { //nolint:errorlint // a reader does not wrap it
		err = &net.OpError{Op: "read", Net: "tcp", Err: syscall.ECONNRESET}
	}
	return n, err
}

// Reset ends the connection, which is an error for the other side.
func (c *memoryConn) Reset() {
	c.reset.Store(true)
	_ = c.Close() // closing a pipe always works
}
