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

// listen opens a TCP listener for the address of a configuration key. Its errors say what to
// do.
func listen(ctx context.Context, address, key string) (*net.TCPListener, error) {
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", address)
	switch {
	case err == nil:
		return l.(*net.TCPListener), nil // always, for tcp
	case errors.Is(err, syscall.EADDRINUSE):
		return nil, fmt.Errorf("%w; stop the process that has this address, or set %s to another one", err, key)
	case errors.Is(err, syscall.EACCES):
		return nil, fmt.Errorf("%w; this user cannot use this port; set %s to one above 1023", err, key)
	default:
		return nil, fmt.Errorf("%w; set %s to an address of this host, such as :5000", err, key)
	}
}

// newServer returns a server for the connections of l. It has no write timeout, because a slow
// client may take hours for a large blob; stuckClients closes connections of clients that read
// nothing.
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

// withoutBody refuses a body of GET and HEAD, and limits the time for other bodies: a client
// that announces a body and does not send it would hold its connection without limit.
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

// withBoundary recovers a panic of h, reports it, and ends the connection. net/http recovers
// panics too, but does not count them, and logs them in a format of its own. There is no error
// response: the response may have begun.
func withBoundary(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer func() {
			switch value := recover(); value {
			case nil:
			case http.ErrAbortHandler:
				panic(value)
			default:
				_ = task.Recovered("request", value) // Recovered reports it
				panic(http.ErrAbortHandler)
			}
		}()
		h.ServeHTTP(w, r)
	})
}

// mirrorURLs returns, for a log line, the URL for a dockerd on this host and, if the listener
// has all addresses, one for other hosts.
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

// hostAddress returns the host's first address that others may reach, IPv4 before IPv6, or nil.
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
