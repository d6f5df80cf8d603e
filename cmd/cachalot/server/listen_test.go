package server

import (
	"bufio"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"runtime"
	"sync/atomic"
	"testing"

	"github.com/cachalot-registry/cachalot/bounds"
)

// limited is a server with at most limit connections.
type limited struct {
	*boundedListener
	addr   string
	tls    *tls.Config   // for TLS; nil: plain
	full   chan struct{} // one element each time a connection waits or is refused
	served atomic.Int64
}

func startLimited(t *testing.T, limit int) *limited {
	t.Helper()
	return startServer(t, limit, false, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/hijack" {
			c, _, err := http.NewResponseController(w).Hijack()
			if err == nil {
				c.Close()
			}
		}
	})
}

func startServer(t *testing.T, limit int, secure bool, handle http.HandlerFunc) *limited {
	t.Helper()
	inner, err := listen(t.Context(), "127.0.0.1:0", "listen")
	if err != nil {
		t.Fatal(err)
	}
	l := &limited{addr: inner.Addr().String(), full: make(chan struct{}, 100)}
	l.boundedListener = newBoundedListener(inner, limit, bounds.DefaultShare, func() { l.full <- struct{}{} })
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		l.served.Add(1)
		handle(w, r)
	})
	s := newServer(h, l.boundedListener, slog.New(slog.DiscardHandler))
	var accepting net.Listener = l
	if secure {
		cfg := pairFiles(t)
		l.tls = &tls.Config{RootCAs: writePair(t, cfg, 1), ServerName: "127.0.0.1"}
		c, err := newCertificate(cfg, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		accepting = newTLSListener(l, c)
	}
	done := make(chan error, 1)
	go func() { done <- s.Serve(accepting) }()
	t.Cleanup(func() {
		s.Close()
		if err := <-done; !errors.Is(err, http.ErrServerClosed) && !errors.Is(err, net.ErrClosed) {
			t.Error(err)
		}
	})
	return l
}

// ask sends a request on its own connection, and returns the connection.
func (l *limited) ask(t *testing.T, path string) net.Conn {
	t.Helper()
	return l.askFrom(t, &net.Dialer{}, path)
}

func (l *limited) askFrom(t *testing.T, d *net.Dialer, path string) net.Conn {
	t.Helper()
	c, err := d.DialContext(t.Context(), "tcp", l.addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if l.tls != nil {
		c = tls.Client(c, l.tls)
	}
	if _, err := c.Write([]byte("GET " + path + " HTTP/1.1\r\nHost: x\r\n\r\n")); err != nil {
		t.Fatal(err)
	}
	return c
}

func answered(t *testing.T, c net.Conn) {
	t.Helper()
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
}

// TestConnectionLimit: if all connections are busy, another one waits.
func TestConnectionLimit(t *testing.T) {
	t.Parallel()
	arrived, gate := make(chan struct{}), make(chan struct{})
	l := startServer(t, 2, false, func(http.ResponseWriter, *http.Request) {
		arrived <- struct{}{}
		<-gate
	})
	first, second := l.ask(t, "/"), l.ask(t, "/")
	<-arrived
	<-arrived
	third := l.ask(t, "/")
	<-l.full // it waits for a slot
	if n := l.places.Taken(); n != 2 {
		t.Errorf("%d connections are open, want 2", n)
	}
	if n := l.served.Load(); n != 2 {
		t.Errorf("%d requests were served, want 2", n)
	}
	gate <- struct{}{}
	<-arrived // an idle connection is closed for it
	close(gate)
	answered(t, third)
	if n := l.served.Load(); n != 3 {
		t.Errorf("%d requests were served, want 3", n)
	}
	_, _ = first.Close(), second.Close()
}

// TestConnectionsTakeTurns: a client waits behind its own connections, not behind another client's.
func TestConnectionsTakeTurns(t *testing.T) {
	t.Parallel()
	arrived, gate := make(chan string, 100), make(chan struct{})
	l := startServer(t, 1, false, func(_ http.ResponseWriter, r *http.Request) {
		arrived <- r.URL.Path
		<-gate
	})
	defer close(gate)
	l.ask(t, "/first")
	<-arrived
	queued := func(n int) {
		for q := l.waiting; ; runtime.Gosched() {
			q.mu.Lock()
			so := q.len >= n
			q.mu.Unlock()
			if so {
				return
			}
		}
	}
	const many = 20
	for range many {
		l.ask(t, "/many")
	}
	queued(many)
	l.askFrom(t, &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 2)}}, "/other")
	queued(many + 1)
	for n := range 3 {
		gate <- struct{}{}
		if <-arrived == "/other" {
			return
		}
		if n == 2 {
			t.Error("one client waits for another one's connections")
		}
	}
}

// TestIdlersGoFirst: idle connections, and those with no request or half of one, are closed
// for others.
func TestIdlersGoFirst(t *testing.T) {
	t.Parallel()
	for _, secure := range []bool{false, true} {
		l := startServer(t, 3, secure, func(http.ResponseWriter, *http.Request) {})
		for range 12 { // these stay open after the response
			answered(t, l.ask(t, "/"))
		}
		if secure {
			continue // a connection without a handshake looks the same
		}
		var d net.Dialer
		for n := range 9 {
			c, err := d.DialContext(t.Context(), "tcp", l.addr)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { c.Close() })
			if _, err := c.Write([]byte("GET / HTTP/1.1\r\nHost: x\r\n")[:n]); err != nil {
				t.Fatal(err)
			}
		}
		answered(t, l.ask(t, "/"))
		if n := l.places.Taken(); n > 3 {
			t.Errorf("%d connections are open", n)
		}
	}
}

// TestConnectionLimit_UnreadStay: a connection with an unread request is not closed for
// another one. A silent connection is.
func TestConnectionLimit_UnreadStay(t *testing.T) {
	t.Parallel()
	inner, err := listen(t.Context(), "127.0.0.1:0", "listen")
	if err != nil {
		t.Fatal(err)
	}
	l := newBoundedListener(inner, 10, bounds.DefaultShare, func() {})
	defer l.Close()
	accept := func(sends string) *connection {
		var d net.Dialer
		client, err := d.DialContext(t.Context(), "tcp", inner.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { client.Close() })
		if _, err := client.Write([]byte(sends)); err != nil {
			t.Fatal(err)
		}
		c, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		accepted := connectionOf(c)
		for sends != "" && !unread(accepted.TCPConn) { // waits for the kernel
			runtime.Gosched()
		}
		return accepted
	}
	for name, state := range map[string]http.ConnState{"new": http.StateNew, "idle": http.StateIdle} {
		asks, silent := accept("GET"), accept("")
		for _, c := range []*connection{asks, silent} {
			l.track(c, state)
			c.since = c.since.Add(-freshFor)
		}
		l.drop()
		if silent.rests {
			t.Errorf("%s: who says nothing stays", name)
		}
		for range 3 {
			l.drop()
		}
		if !asks.rests {
			t.Errorf("%s: who has asked was closed", name)
		}
		l.track(asks, http.StateActive)
	}
}

// TestFairConnections: one client gets all connections except the last share, busy or not.
// Others get theirs at once. A load balancer counts as many clients.
func TestFairConnections(t *testing.T) {
	t.Parallel()
	const limit, most = 8, 6
	arrived, gate := make(chan struct{}, 2*limit), make(chan struct{})
	l := startServer(t, limit, false, func(_ http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/busy" {
			arrived <- struct{}{}
			<-gate
		}
	})
	for range most {
		l.ask(t, "/busy")
		<-arrived
	}
	for range 3 {
		if _, err := l.ask(t, "/busy").Read(make([]byte, 1)); err == nil {
			t.Error("one client has more than it may")
		}
	}
	other := &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 2)}}
	for range 2 * limit { // its own idle connections are closed for its next one
		answered(t, l.askFrom(t, other, "/"))
	}
	if n := l.places.Taken(); n > limit {
		t.Errorf("%d connections are open", n)
	}
	l.trust([]netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")})
	answered(t, l.ask(t, "/"))
	close(gate)
}

// TestListener_GetWithBody: a GET with a body is refused at once, and its connection is closed.
func TestListener_GetWithBody(t *testing.T) {
	t.Parallel()
	l := startServer(t, 2, false, func(http.ResponseWriter, *http.Request) {})
	for _, framing := range []string{"Content-Length: 200000", "Content-Length: 1", "Transfer-Encoding: chunked"} {
		for _, method := range []string{http.MethodGet, http.MethodHead} {
			var d net.Dialer
			c, err := d.DialContext(t.Context(), "tcp", l.addr)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := c.Write([]byte(method + " / HTTP/1.1\r\nHost: x\r\n" + framing + "\r\n\r\n")); err != nil {
				t.Fatal(err)
			}
			r := bufio.NewReader(c)
			resp, err := http.ReadResponse(r, &http.Request{Method: method})
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			if resp.StatusCode != http.StatusBadRequest {
				t.Errorf("%s with %s: %s", method, framing, resp.Status)
			}
			if _, err := io.Copy(io.Discard, r); err != nil {
				t.Errorf("%s with %s: %v", method, framing, err)
			}
			c.Close()
		}
	}
	if n := l.served.Load(); n != 0 {
		t.Errorf("%d were served", n)
	}
}

func TestConnectionLimitAfterHijack(t *testing.T) {
	t.Parallel()
	l := startLimited(t, 1)
	for range 3 { // each needs the slot of the previous one
		c := l.ask(t, "/hijack")
		if _, err := c.Read(make([]byte, 1)); err == nil {
			t.Error("a hijacked connection was answered")
		}
	}
	answered(t, l.ask(t, "/"))
}

// A server stops at once while its listener waits for a slot.
func TestConnectionLimitClose(t *testing.T) {
	t.Parallel()
	gate := make(chan struct{})
	l := startServer(t, 1, false, func(http.ResponseWriter, *http.Request) { <-gate })
	defer close(gate)
	l.ask(t, "/")
	l.ask(t, "/")
	<-l.full
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Accept: %v, want net.ErrClosed", err)
	}
}

// TestAcceptedTakesFiles: net/http passes files to an accepted connection as to a
// *net.TCPConn, which uses sendfile.
func TestAcceptedTakesFiles(t *testing.T) {
	t.Parallel()
	inner, err := listen(t.Context(), "127.0.0.1:0", "listen")
	if err != nil {
		t.Fatal(err)
	}
	l := newBoundedListener(inner, 1, bounds.DefaultShare, func() {})
	defer l.Close()
	var d net.Dialer
	client, err := d.DialContext(t.Context(), "tcp", inner.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if of := connectionOf(c); of == nil || of != c {
		t.Errorf("accepted a %T", c)
	}
	if _, ok := c.(io.ReaderFrom); !ok {
		t.Errorf("a %T takes no file", c)
	}
}

func TestListenSaysWhatToDo(t *testing.T) {
	t.Parallel()
	taken, err := listen(t.Context(), "127.0.0.1:0", "listen")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	addr := taken.Addr().String()
	for address, want := range map[string]string{
		addr:                "listen tcp " + addr + ": bind: address already in use; stop the process that has this address, or set admin.listen to another one",
		"198.51.100.1:5000": "listen tcp 198.51.100.1:5000: bind: cannot assign requested address; set admin.listen to an address of this host, such as :5000",
	} {
		l, err := listen(t.Context(), address, "admin.listen")
		if err == nil {
			l.Close()
		}
		if err == nil || err.Error() != want {
			t.Errorf("got  %v\nwant %s", err, want)
		}
	}
}

func TestMirrorURLs(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		addr *net.TCPAddr
		want string
	}{
		{&net.TCPAddr{IP: net.IPv4zero, Port: 5000}, "http://127.0.0.1:5000"},
		{&net.TCPAddr{IP: net.IPv6unspecified, Port: 5000}, "http://127.0.0.1:5000"},
		{&net.TCPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 80}, "http://192.0.2.1:80"},
		{&net.TCPAddr{IP: net.ParseIP("2001:db8::1"), Port: 5000}, "http://[2001:db8::1]:5000"},
	} {
		if got := mirrorURLs(test.addr, "http")[1]; got != test.want {
			t.Errorf("%s: %s, want %s", test.addr, got, test.want)
		}
	}
}
