package upstreamtest

import (
	"io"
	"log"
	"net/http"
	"net/http/httputil"
	"net/url"
)

// Relay passes requests on to a registry that is a process of its own, and
// records all of them, pushes as Other.
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
	transport := &http.Transport{DisableCompression: true} // what is passed on stays as it is
	proxy := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(target)
			r.Out.Host = r.In.Host // uploads go on where they began
		},
		Transport: transport,
		ErrorLog:  log.New(io.Discard, "", 0), // a registry that is gone is what tests want
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
