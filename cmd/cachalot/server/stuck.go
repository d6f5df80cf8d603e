package server

import (
	"context"
	"log/slog"
	"net"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// stuckClients cuts off clients that take nothing of their answer: without that
// they would hold their places among max_connections without an end.
//
// It asks the kernel what each client has acknowledged (TCP_INFO) and leaves the
// connections as they are. A write deadline would have to be moved during
// sendfile, which sends a file in one call. TCP_USER_TIMEOUT cuts off slow
// clients too: small windows that a client opens do not count for it.
type stuckClients struct {
	limit  atomic.Int64 // a time.Duration; 0: none is cut off
	atWork func() []*net.TCPConn
	log    *slog.Logger

	seen map[*net.TCPConn]taken // at the last look; look's own
}

// taken is what a client has acknowledged, and since when no more.
type taken struct {
	bytes uint64
	since time.Time // zero: nothing waits for it
}

// newStuckClients looks at the connections for which atWork says that something is done.
func newStuckClients(limit time.Duration, atWork func() []*net.TCPConn, log *slog.Logger) *stuckClients {
	s := &stuckClients{atWork: atWork, log: log}
	s.limit.Store(int64(limit))
	return s
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

// look closes connections of clients that have acknowledged nothing for the limit, while something
// waits to be.
func (s *stuckClients) look(now time.Time) {
	limit := time.Duration(s.limit.Load())
	if limit == 0 {
		s.seen = nil // what is seen once there is a limit counts from then
		return
	}
	seen := map[*net.TCPConn]taken{}
	for _, tcp := range s.atWork() {
		bytes, waiting, err := acknowledged(tcp)
		before := s.seen[tcp]
		switch {
		case err != nil || !waiting: // it is closed, or has all
		case before.since.IsZero() || bytes != before.bytes:
			seen[tcp] = taken{bytes, now}
		case now.Sub(before.since) < limit:
			seen[tcp] = before
		default:
			s.log.Info("client read nothing; closing the connection", "client", tcp.RemoteAddr().String(), "seconds", now.Sub(before.since).Seconds())
			_ = tcp.SetLinger(0) // nor shall the kernel keep what it does not take
			_ = tcp.Close()      // the handler's write fails, and closes it again
		}
	}
	s.seen = seen
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
