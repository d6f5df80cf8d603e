package server

import (
	"context"
	"log/slog"
	"net"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// stuckClients closes connections of clients that read nothing of their response. Otherwise
// they would hold their places in max_connections without limit.
//
// It gets from the kernel what each client has acknowledged (TCP_INFO), and changes no setting
// of a connection. A write deadline would have to be moved during sendfile, which sends a file
// in one call. TCP_USER_TIMEOUT closes connections of slow clients too: small windows that a
// client opens do not count for it.
type stuckClients struct {
	limit  atomic.Int64 // a time.Duration; 0: none is closed
	atWork func() []*net.TCPConn
	log    *slog.Logger

	seen map[*net.TCPConn]taken // at the last look; used by look alone
}

// taken is how much a client has acknowledged, and since when it has not acknowledged more.
type taken struct {
	bytes uint64
	since time.Time // zero: nothing waits for it
}

// newStuckClients checks the connections that atWork returns: those with a request in progress.
func newStuckClients(limit time.Duration, atWork func() []*net.TCPConn, log *slog.Logger) *stuckClients {
	s := &stuckClients{atWork: atWork, log: log}
	s.limit.Store(int64(limit))
	return s
}

// run looks at the connections every ten seconds, or four times within a shorter limit but at
// most once a second, until ctx ends. A reload may change the limit at any time.
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

// look closes a connection if data waits for its client, and the client has acknowledged
// nothing for the limit.
func (s *stuckClients) look(now time.Time) {
	limit := time.Duration(s.limit.Load())
	if limit == 0 {
		s.seen = nil // a later limit counts from its first look
		return
	}
	seen := map[*net.TCPConn]taken{}
	for _, tcp := range s.atWork() {
		bytes, waiting, err := acknowledged(tcp)
		before := s.seen[tcp]
		switch {
		case err != nil || !waiting: // it is closed, or the client has acknowledged all
		case before.since.IsZero() || bytes != before.bytes:
			seen[tcp] = taken{bytes, now}
		case now.Sub(before.since) < limit:
			seen[tcp] = before
		default:
			s.log.Info("client read nothing; closing the connection", "client", tcp.RemoteAddr().String(), "seconds", now.Sub(before.since).Seconds())
			_ = tcp.SetLinger(0) // the kernel drops what the client does not read
			_ = tcp.Close()      // the handler's write fails, and the server closes it again
		}
	}
	s.seen = seen
}

// acknowledged returns how many bytes a peer has acknowledged, and whether more wait.
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
