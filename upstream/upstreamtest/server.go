package upstreamtest

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"sync"
	"time"
)

// Server is an HTTP server, on loopback or in memory, that can stop and start again at its
// address. What crosses its sockets is counted.
type Server struct {
	tb          TB
	handler     http.Handler
	certificate *pair
	count       *Recorder
	wrap        func(net.Listener) net.Listener // nil: nothing
	addr        string
	memory      *Memory // nil: loopback

	mu      sync.Mutex   // guards the fields below
	running *http.Server // nil while stopped
	served  chan struct{}
}

const anyPort = "127.0.0.1:0"

// NewServer serves a handler, which calls Record with what a request is for.
func NewServer(tb TB, h http.Handler, count *Recorder) *Server {
	s := &Server{tb: tb, handler: h, count: count, addr: anyPort}
	s.Up()
	return s
}

// Host is the server's host:port.
func (s *Server) Host() string { return s.addr }

// Up listens again at the same address.
func (s *Server) Up() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.running != nil {
		return
	}
	l, err := s.listen()
	if err != nil {
		s.tb.Fatalf("listen: %v", err)
		return
	}
	s.addr = l.Addr().String()
	if s.wrap != nil {
		l = s.wrap(l)
	}
	l = countedListener{l, s.count}
	if s.certificate != nil {
		l = tls.NewListener(l, &tls.Config{Certificates: []tls.Certificate{s.certificate.key}, MinVersion: tls.VersionTLS12})
	}
	running := &http.Server{
		Handler: s.handler, ReadHeaderTimeout: time.Minute,
		ErrorLog: log.New(io.Discard, "", 0), // handlers abort on purpose
	}
	served := make(chan struct{})
	s.running, s.served = running, served
	go func() {
		defer close(served)
		_ = running.Serve(l) // ends with ErrServerClosed
	}()
}

func (s *Server) listen() (net.Listener, error) {
	if s.memory != nil {
		return s.memory.Listen(s.addr)
	}
	if s.addr == anyPort {
		s.addr = PortFor(s.tb)
	}
	var lc net.ListenConfig
	return lc.Listen(context.Background(), "tcp", s.addr)
}

// Down refuses and breaks all connections, until Up.
func (s *Server) Down() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.running == nil {
		return
	}
	_ = s.running.Close() // the listener is closed either way
	<-s.served
	s.running = nil
}

type countedListener struct {
	net.Listener
	count *Recorder
}

func (l countedListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return countedConn{c, l.count}, nil
}

type countedConn struct {
	net.Conn
	count *Recorder
}

func (c countedConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.count.received.Add(int64(n))
	return n, err
}

func (c countedConn) Write(p []byte) (int, error) {
	// Count the bytes before the client can read them.
	c.count.written.Add(int64(len(p)))
	n, err := c.Conn.Write(p)
	c.count.written.Add(int64(n - len(p)))
	return n, err
}

// pair is a self-signed certificate for loopback and the names tests use.
type pair struct {
	key tls.Certificate
	pem []byte
}

func newPair(tb TB) *pair {
	tb.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		tb.Fatalf("make a key: %v", err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "upstreamtest"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true,
		KeyUsage:    x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback},
		DNSNames:    []string{"localhost", "registry.test", "*.registry.test", "auth.test", "cdn.test"},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		tb.Fatalf("make a certificate: %v", err)
	}
	return &pair{
		key: tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key},
		pem: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
	}
}
