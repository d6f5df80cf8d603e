package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/cachalot-registry/cachalot/task"
)

// listen opens a TCP listener for the address of key. It says what to do where
// the address cannot be had.
func listen(ctx context.Context, address, key string) (net.Listener, error) {
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", address)
	switch {
	case err == nil:
		return l, nil
	case errors.Is(err, syscall.EADDRINUSE):
		return nil, fmt.Errorf("%w; stop the process that has this address, or set %s to another one", err, key)
	case errors.Is(err, syscall.EACCES):
		return nil, fmt.Errorf("%w; this user may not have this port, set %s to one above 1023", err, key)
	default:
		return nil, fmt.Errorf("%w; set %s to an address of this host, such as :5000", err, key)
	}
}

// boundedListener accepts a connection only while fewer than its limit are
// open; further ones wait in the kernel's queue. A server tells it by release
// which have closed: a net.Conn that told so itself would hide the *net.TCPConn
// from net/http, and with it sendfile.
type boundedListener struct {
	net.Listener
	slots  chan struct{} // one for each open connection, and for the next
	open   atomic.Int64
	closed chan struct{}
	once   sync.Once // closes closed
	full   func()    // called when as many are open as may be
}

func newBoundedListener(l net.Listener, limit int, full func()) *boundedListener {
	return &boundedListener{Listener: l, slots: make(chan struct{}, limit), closed: make(chan struct{}), full: full}
}

func (l *boundedListener) Accept() (net.Conn, error) {
	select {
	case l.slots <- struct{}{}:
	default:
		l.full()
		select {
		case l.slots <- struct{}{}:
		case <-l.closed:
			return nil, net.ErrClosed
		}
	}
	c, err := l.Listener.Accept()
	if err != nil {
		<-l.slots
		return nil, err
	}
	l.open.Add(1)
	return c, nil
}

func (l *boundedListener) Close() error {
	l.once.Do(func() { close(l.closed) })
	if err := l.Listener.Close(); !errors.Is(err, net.ErrClosed) { // its server may have been first
		return err
	}
	return nil
}

// release is the server's ConnState hook.
func (l *boundedListener) release(_ net.Conn, state http.ConnState) {
	if state == http.StateClosed || state == http.StateHijacked {
		l.open.Add(-1)
		<-l.slots
	}
}

// newServer serves what l accepts. It has no write timeout, for a slow client may
// take hours over a large blob; stuckClients ends those that take nothing.
func newServer(h http.Handler, l *boundedListener, log *slog.Logger) *http.Server {
	return &http.Server{
		Handler:           withBoundary(h),
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    64 << 10,
		ConnState:         l.release,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelError),
	}
}

// withBoundary is h with a boundary of its own: net/http has one, but neither counts what
// it catches nor logs it as the rest is logged. What panics has begun its answer, or
// answers no more.
func withBoundary(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer func() {
			switch value := recover(); value {
			case nil:
			case http.ErrAbortHandler:
				panic(value)
			default:
				_ = task.Recovered("request", value) // it is reported
				panic(http.ErrAbortHandler)
			}
		}()
		h.ServeHTTP(w, r)
	})
}

// mirrorURLs are the URL to give to a dockerd on this host and, where the
// listener has other addresses too, one for other hosts: for a log line.
func mirrorURLs(addr net.Addr, scheme string) []any {
	tcp, ok := addr.(*net.TCPAddr)
	if !ok || !tcp.IP.IsUnspecified() {
		return []any{"registry_mirror", scheme + "://" + addr.String()}
	}
	port := strconv.Itoa(tcp.Port)
	urls := []any{"registry_mirror", scheme + "://" + net.JoinHostPort("127.0.0.1", port)}
	if ip := hostAddress(); ip != nil {
		urls = append(urls, "from_other_hosts", scheme+"://"+net.JoinHostPort(ip.String(), port))
	}
	return urls
}

// hostAddress is the host's first address that others may reach, IPv4 before
// IPv6, or nil.
func hostAddress() net.IP {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return nil
	}
	var v6 net.IP
	for _, a := range addrs {
		n, ok := a.(*net.IPNet)
		if !ok || !n.IP.IsGlobalUnicast() {
			continue
		}
		if n.IP.To4() != nil {
			return n.IP
		}
		if v6 == nil {
			v6 = n.IP
		}
	}
	return v6
}
