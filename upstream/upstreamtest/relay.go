package upstreamtest

import (
	"io"
	"log"
	"net/http"
	"net/http/httputil"
	"net/url"
)

// Relay forwards requests to a registry in another process, and records them, pushes as Other.
type Relay struct {
	Recorder
	URL string // http://127.0.0.1:PORT

	server *Server
}

// NewRelay starts a relay that ends with the test.
func NewRelay(tb TB, registry string) *Relay {
	tb.Helper()
	target, err := url.Parse(registry)
	if err != nil {
		tb.Fatalf("relay: %v", err)
	}
	transport := &http.Transport{DisableCompression: true} // the content stays unchanged
	proxy := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(target)
			r.Out.Host = r.In.Host // uploads continue at the same host
		},
		Transport: transport,
		ErrorLog:  log.New(io.Discard, "", 0), // tests stop the registry on purpose
	}
	r := &Relay{}
	r.server = NewServer(tb, http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		proxy.ServeHTTP(r.Record(w, req, "", ""), req)
	}), &r.Recorder)
	r.URL = "http://" + r.server.addr
	tb.Cleanup(func() {
		r.Down()
		transport.CloseIdleConnections()
	})
	return r
}

// Down refuses and breaks all connections, until Up.
func (r *Relay) Down() { r.server.Down() }

// Up listens again at the same address.
func (r *Relay) Up() { r.server.Up() }
