package main

import (
	"bufio"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"sync/atomic"
	"testing"
)

// limited is a server with at most limit connections.
type limited struct {
	*boundedListener
	addr   string
	tls    *tls.Config   // of its clients; nil: plain
	full   chan struct{} // one element each time nobody more is accepted
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
	}, func(net.Conn, http.ConnState) {})
}

func startServer(t *testing.T, limit int, secure bool, handle http.HandlerFunc, state func(net.Conn, http.ConnState)) *limited {
	t.Helper()
	inner, err := listen(t.Context(), "127.0.0.1:0", "listen")
	if err != nil {
		t.Fatal(err)
	}
	l := &limited{addr: inner.Addr().String(), full: make(chan struct{}, 100)}
	l.boundedListener = newBoundedListener(inner, limit, func() { l.full <- struct{}{} })
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		l.served.Add(1)
		handle(w, r)
	})
	s := newServer(h, l.boundedListener, slog.New(slog.DiscardHandler))
	s.ConnState = func(c net.Conn, now http.ConnState) {
		l.release(c, now)
		state(c, now)
	}
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

// ask sends a request on a connection of its own, and returns that.
func (l *limited) ask(t *testing.T, path string) net.Conn {
	t.Helper()
	var d net.Dialer
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

func TestConnectionLimit(t *testing.T) {
	t.Parallel()
	l := startLimited(t, 2)
	first, second := l.ask(t, "/"), l.ask(t, "/")
	answered(t, first)
	answered(t, second)
	<-l.full // the server waits for a slot

	third := l.ask(t, "/")
	if n := l.open.Load(); n != 2 {
		t.Errorf("%d connections are open, want 2", n)
	}
	if n := l.served.Load(); n != 2 {
		t.Errorf("%d requests were served, want 2", n)
	}
	first.Close()
	answered(t, third)
	if n := l.served.Load(); n != 3 {
		t.Errorf("%d requests were served, want 3", n)
	}
}

func TestConnectionLimitAfterHijack(t *testing.T) {
	t.Parallel()
	l := startLimited(t, 1)
	for range 3 { // each needs the slot of the one before
		c := l.ask(t, "/hijack")
		if _, err := c.Read(make([]byte, 1)); err == nil {
			t.Error("a hijacked connection was answered")
		}
	}
	answered(t, l.ask(t, "/"))
}

// A server that stops while its listener waits for a slot must not hang.
func TestConnectionLimitClose(t *testing.T) {
	t.Parallel()
	l := startLimited(t, 1)
	answered(t, l.ask(t, "/"))
	<-l.full
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Accept: %v, want net.ErrClosed", err)
	}
}

// What is accepted is what the kernel gave: only to that does net/http sendfile.
func TestConnectionsAreNotWrapped(t *testing.T) {
	t.Parallel()
	inner, err := listen(t.Context(), "127.0.0.1:0", "listen")
	if err != nil {
		t.Fatal(err)
	}
	l := newBoundedListener(inner, 1, func() {})
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
	if _, ok := c.(*net.TCPConn); !ok {
		t.Errorf("accepted a %T", c)
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
