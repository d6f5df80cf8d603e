package main

import (
	"context"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// stuckClients cuts off clients that take nothing of their answer: without that
// they would hold their places among max_connections for ever.
//
// It asks the kernel what each client has acknowledged (TCP_INFO) and leaves the
// connections as they are. A write deadline would have to be moved during
// sendfile, which sends a file in one call. TCP_USER_TIMEOUT cuts off slow
// clients too: small windows that a client opens do not count for it.
type stuckClients struct {
	limit atomic.Int64 // a time.Duration; 0: none is cut off
	log   *slog.Logger

	mu   sync.Mutex // guards busy; what its pointers lead to belongs to look
	busy map[net.Conn]*taken
}

// taken is what a client has acknowledged, and since when no more.
type taken struct {
	bytes uint64
	since time.Time // zero: nothing waits for it
}

func newStuckClients(limit time.Duration, log *slog.Logger) *stuckClients {
	s := &stuckClients{log: log, busy: map[net.Conn]*taken{}}
	s.limit.Store(int64(limit))
	return s
}

// state is the server's ConnState hook.
func (s *stuckClients) state(c net.Conn, state http.ConnState) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if state == http.StateActive {
		s.busy[c] = &taken{}
	} else {
		delete(s.busy, c)
	}
}

// run looks at all connections every ten seconds, or four times within a shorter
// limit, until ctx ends. A reload may bring another limit at any time.
func (s *stuckClients) run(ctx context.Context) {
	for {
		every := 10 * time.Second
		if limit := time.Duration(s.limit.Load()); limit > 0 {
			every = min(every, max(limit/4, time.Second))
		}
		wait := time.NewTimer(every)
		select {
		case <-ctx.Done():
			wait.Stop()
			return
		case now := <-wait.C:
			s.look(now)
		}
	}
}

// look cuts off whoever has acknowledged nothing for the limit, while something
// waits to be.
func (s *stuckClients) look(now time.Time) {
	limit := time.Duration(s.limit.Load())
	if limit == 0 {
		return
	}
	s.mu.Lock()
	busy := maps.Clone(s.busy)
	s.mu.Unlock()
	for c, t := range busy {
		tcp := tcpOf(c)
		if tcp == nil {
			continue
		}
		bytes, waiting, err := acknowledged(tcp)
		switch {
		case err != nil: // it is closed
		case !waiting:
			t.since = time.Time{}
		case t.since.IsZero() || bytes != t.bytes:
			t.bytes, t.since = bytes, now
		case now.Sub(t.since) >= limit:
			s.log.Info("client cut off, for it takes nothing of its answer", "client", c.RemoteAddr().String(), "seconds", now.Sub(t.since).Seconds())
			_ = tcp.SetLinger(0) // nor shall the kernel keep what it does not take
			_ = tcp.Close()      // the handler's write fails, and closes it again
		}
	}
}

// tcpOf is what lies below a connection, TLS or not; nil if that is not TCP.
func tcpOf(c net.Conn) *net.TCPConn {
	for {
		t, ok := c.(interface{ NetConn() net.Conn })
		if !ok {
			tcp, _ := c.(*net.TCPConn)
			return tcp
		}
		c = t.NetConn()
	}
}

// acknowledged says how much a peer has got so far, and whether more waits.
func acknowledged(c *net.TCPConn) (bytes uint64, waiting bool, err error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, false, err
	}
	var info *unix.TCPInfo
	if cerr := raw.Control(func(fd uintptr) { info, err = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO) }); cerr != nil {
		return 0, false, cerr
	}
	if err != nil {
		return 0, false, err
	}
	return info.Bytes_acked, info.Notsent_bytes > 0 || info.Unacked > 0, nil
}
