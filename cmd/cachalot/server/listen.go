package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"syscall"
	"time"

	"github.com/cachalot-registry/cachalot/task"
)

// listen opens a TCP listener for the address of key. It says what to do where
// the address cannot be had.
func listen(ctx context.Context, address, key string) (*net.TCPListener, error) {
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", address)
	switch {
	case err == nil:
		return l.(*net.TCPListener), nil // as of tcp
	case errors.Is(err, syscall.EADDRINUSE):
		return nil, fmt.Errorf("%w; stop the process that has this address, or set %s to another one", err, key)
	case errors.Is(err, syscall.EACCES):
		return nil, fmt.Errorf("%w; this user cannot use this port; set %s to one above 1023", err, key)
	default:
		return nil, fmt.Errorf("%w; set %s to an address of this host, such as :5000", err, key)
	}
}

// newServer serves what l accepts. It has no write timeout, for a slow client may
// take hours over a large blob; stuckClients ends those that take nothing.
func newServer(h http.Handler, l *boundedListener, log *slog.Logger) *http.Server {
	return &http.Server{
		Handler:           withBoundary(withoutBody(h)),
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    maxHeader,
		ConnState:         l.track,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelError),
	}
}

const (
	// maxHeader bounds a request's header, which each connection may hold in memory;
	// nginx's default is as much. Longer ones are answered 431.
	maxHeader = 16 << 10
	// bodyTime is how long a client may take to send a request's body: the longest is
	// a list of images to the admin API.
	bodyTime = 30 * time.Second
)

// withoutBody refuses a body where none is wanted, and gives others little time: a
// client that announces one and does not send it would hold its connection without limit.
func withoutBody(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.ContentLength != 0 {
			c := http.NewResponseController(w) // a server's connection has deadlines
			_ = c.SetReadDeadline(time.Now().Add(bodyTime))
			if r.Method == http.MethodGet || r.Method == http.MethodHead {
				_ = c.SetReadDeadline(time.Now()) // net/http would wait for the body before it answers
				w.Header().Set("Connection", "close")
				http.Error(w, "a "+r.Method+" has no body here: send it without Content-Length and Transfer-Encoding", http.StatusBadRequest)
				return
			}
		}
		h.ServeHTTP(w, r)
	})
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
