//go:build e2e

package e2e

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
	"maps"
	"math/big"
	"net"
	"net/http"
	"net/http/httputil"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"
	"golang.org/x/time/rate"

	"github.com/cachalot-registry/cachalot/upstream/distributiontest"
	"github.com/cachalot-registry/cachalot/upstream/upstreamtest"
)

// Public names, all at one address.
const (
	hubName     = "registry-1.docker.io"
	hubTokens   = "auth.docker.io"
	hubCDN      = "production.cloudflare.docker.com"
	quayName    = "quay.io"
	privateName = "registry.example" // the CI's own registry; a push needs a login
	mirrorName  = "cachalot.example" // TLS in front of the mirror, also at mirrorPath
	mirrorPath  = "/mirrors/cachalot"
)

// internet is all that a [host] reaches: registries with their public names and TLS, and a
// name server.
type internet struct {
	address   netip.Addr
	hub, quay *distributiontest.Registry // both give tokens without a login
	private   *distributiontest.Registry // asks for a password
	public    *authority                 // for the registries' certificates
	own       *authority                 // for the mirror's certificate
	proxy     *connects                  // at port 3128
	line      *rate.Limiter              // bytes per second for all connections
	transport *http.Transport
}

// connectInternet serves at an address of this machine until the test ends. mirror is the
// backend of mirrorName.
func connectInternet(t *testing.T, address netip.Addr, mirror string) *internet {
	t.Helper()
	n := &internet{
		address: address,
		hub: distributiontest.New(t, distributiontest.Options{
			Auth: upstreamtest.Bearer, CDN: true, TokenURL: "https://" + hubTokens + "/token", CDNURL: "https://" + hubCDN,
		}),
		quay: distributiontest.New(t, distributiontest.Options{
			Auth: upstreamtest.Bearer, TokenURL: "https://" + quayName + "/token",
		}),
		private: distributiontest.New(t, distributiontest.Options{
			Auth: upstreamtest.Basic, Username: user, Password: password,
		}),
		public: newAuthority(t), own: newAuthority(t),
		line:      rate.NewLimiter(rate.Inf, 1<<20),
		transport: &http.Transport{DisableCompression: true},
	}
	t.Cleanup(n.transport.CloseIdleConnections)
	routes := map[string]http.Handler{
		hubName: n.to(t, n.hub.URL), hubTokens: n.to(t, n.hub.URL), hubCDN: n.to(t, n.hub.CDNURL),
		quayName: n.to(t, n.quay.URL), privateName: n.to(t, n.private.URL), mirrorName: n.to(t, mirror),
	}
	names := slices.Collect(maps.Keys(routes))
	public, own := n.public.certificate(t, names), n.own.certificate(t, []string{mirrorName})
	n.serve(t, "443", &tls.Config{
		MinVersion: tls.VersionTLS12,
		GetCertificate: func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
			if hello.ServerName == mirrorName {
				return own, nil
			}
			return public, nil
		},
	}, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		to := routes[r.Host]
		switch {
		case to == nil:
			http.Error(w, "no such host", http.StatusMisdirectedRequest)
		case strings.HasPrefix(r.URL.Path, mirrorPath):
			http.StripPrefix(mirrorPath, to).ServeHTTP(w, r)
		default:
			to.ServeHTTP(w, r)
		}
	}))
	n.proxy = &connects{allowed: names, address: net.JoinHostPort(address.String(), "443")}
	n.serve(t, "5000", nil, n.to(t, mirror))
	n.serve(t, "3128", nil, n.proxy)
	n.serveNames(t, names)
	return n
}

// to is a proxy to target.
func (n *internet) to(t *testing.T, target string) http.Handler {
	t.Helper()
	u, err := url.Parse(target)
	check(t, err)
	return &httputil.ReverseProxy{
		Transport: n.transport, FlushInterval: -1, ErrorLog: log.New(io.Discard, "", 0), // clients may leave
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(u)
			r.SetXForwarded()
			r.Out.Host = r.In.Host
		},
	}
}

func (n *internet) serve(t *testing.T, port string, secure *tls.Config, handler http.Handler) {
	t.Helper()
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", net.JoinHostPort(n.address.String(), port))
	check(t, err)
	l = slowListener{l, n.line}
	if secure != nil {
		l = tls.NewListener(l, secure)
	}
	server := &http.Server{Handler: handler, ReadHeaderTimeout: patience, ErrorLog: log.New(io.Discard, "", 0)}
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = server.Serve(l) // ends with ErrServerClosed
	}()
	t.Cleanup(func() {
		_ = server.Close() // breaks open connections
		<-served
	})
}

// slowListener limits the rate of all its connections together.
type slowListener struct {
	net.Listener
	line *rate.Limiter
}

func (l slowListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return slowConn{c, l.line}, nil
}

type slowConn struct {
	net.Conn
	line *rate.Limiter
}

func (c slowConn) Write(p []byte) (int, error) {
	written := 0
	for piece := range slices.Chunk(p, c.line.Burst()) {
		if err := c.line.WaitN(context.Background(), len(piece)); err != nil {
			return written, err
		}
		n, err := c.Conn.Write(piece)
		written += n
		if err != nil {
			return written, err
		}
	}
	return written, nil
}

// serveNames resolves these names, and no others.
func (n *internet) serveNames(t *testing.T, names []string) {
	t.Helper()
	conn, err := new(net.ListenConfig).ListenPacket(t.Context(), "udp", net.JoinHostPort(n.address.String(), "53"))
	check(t, err)
	served := make(chan struct{})
	go func() {
		defer close(served)
		b := make([]byte, 1<<12)
		for {
			size, from, err := conn.ReadFrom(b)
			if err != nil {
				return // closed
			}
			if answer := n.resolve(b[:size], names); answer != nil {
				_, _ = conn.WriteTo(answer, from) // clients retry
			}
		}
	}()
	t.Cleanup(func() {
		_ = conn.Close()
		<-served
	})
}

// resolve builds the response to a DNS query; nil for an invalid query.
func (n *internet) resolve(message []byte, names []string) []byte {
	var question dnsmessage.Message
	if err := question.Unpack(message); err != nil || len(question.Questions) != 1 {
		return nil
	}
	q := question.Questions[0]
	answer := dnsmessage.Message{
		Header:    dnsmessage.Header{ID: question.ID, Response: true, RecursionAvailable: true, RecursionDesired: question.RecursionDesired},
		Questions: question.Questions,
	}
	switch known := slices.Contains(names, strings.ToLower(strings.TrimSuffix(q.Name.String(), "."))); {
	case !known:
		answer.RCode = dnsmessage.RCodeNameError
	case q.Type == dnsmessage.TypeA:
		answer.Answers = []dnsmessage.Resource{{
			Header: dnsmessage.ResourceHeader{Name: q.Name, Class: q.Class, TTL: 60},
			Body:   &dnsmessage.AResource{A: n.address.As4()},
		}}
	}
	packed, err := answer.Pack()
	if err != nil {
		return nil
	}
	return packed
}

// authority signs certificates.
type authority struct {
	certified *x509.Certificate
	key       *ecdsa.PrivateKey
	pem       []byte // of its own certificate
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	check(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "cachalot's tests " + rand.Text()},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	check(t, err)
	certified, err := x509.ParseCertificate(der)
	check(t, err)
	return &authority{certified, key, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})}
}

func (a *authority) certificate(t *testing.T, names []string) *tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	check(t, err)
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	check(t, err)
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: names[0]}, DNSNames: names,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}, a.certified, key.Public(), a.key)
	check(t, err)
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}
