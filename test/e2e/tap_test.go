//go:build e2e

package e2e

import (
	"cmp"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync"
	"testing"
)

// tap is a proxy between clients and a mirror that records requests.
type tap struct {
	mu  sync.Mutex // guards log and its elements
	log []*asked
}

// asked is a request to the mirror.
type asked struct {
	method, path, query string
	span                string // its Range
	credential          bool
	status              int // of the response; 0: no response yet
}

// wiretap puts a tap in front of the mirror. Clients use its URL from now on.
func wiretap(t *testing.T, m *mirror) *tap {
	t.Helper()
	w := &tap{}
	front := httptest.NewUnstartedServer(w.handler(t, m))
	front.Config.ErrorLog = log.New(io.Discard, "", 0) // clients leave, and some try TLS first
	front.Start()
	t.Cleanup(front.Close)
	m.front = front.URL
	return w
}

func (w *tap) handler(t *testing.T, m *mirror) http.Handler {
	t.Helper()
	target, err := url.Parse("http://" + m.listen)
	check(t, err)
	transport := &http.Transport{DisableCompression: true}
	t.Cleanup(transport.CloseIdleConnections)
	proxy := &httputil.ReverseProxy{
		Transport: transport, FlushInterval: -1, ErrorLog: log.New(io.Discard, "", 0),
		Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(target); r.Out.Host = r.In.Host },
	}
	return http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		a := &asked{
			method: r.Method, path: r.URL.EscapedPath(), query: r.URL.RawQuery,
			span: r.Header.Get("Range"), credential: r.Header.Get("Authorization") != "",
		}
		w.mu.Lock()
		w.log = append(w.log, a)
		w.mu.Unlock()
		proxy.ServeHTTP(&tapped{rw, w, a}, r)
	})
}

// tapped records the status of a response.
type tapped struct {
	http.ResponseWriter
	tap   *tap
	asked *asked
}

func (w *tapped) WriteHeader(status int) {
	w.tap.mu.Lock()
	w.asked.status = cmp.Or(w.asked.status, status)
	w.tap.mu.Unlock()
	w.ResponseWriter.WriteHeader(status)
}

func (w *tapped) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// heard returns the requests so far with this text in the path or query; "": all.
func (w *tap) heard(name string) []asked {
	w.mu.Lock()
	defer w.mu.Unlock()
	var list []asked
	for _, a := range w.log {
		if strings.Contains(a.path+"?"+a.query, name) {
			list = append(list, *a)
		}
	}
	return list
}
