package admin

import (
	"fmt"
	"log/slog"
	"net/http"
	"net/http/pprof"
	"time"

	"github.com/cachalot-registry/cachalot/proxy"
	"github.com/gorilla/mux"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Config is what the admin listener needs.
type Config struct {
	Gatherer prometheus.Gatherer
	Ready    func() error // the error that /readyz answers with; nil: it is ready
	// Current returns the Proxy that answers clients now, which stays open until
	// done is called; nil while the process ends.
	Current func() (p *proxy.Proxy, done func())
	Pins    *Pins
	// Loopback: the listener is bound to a loopback address. Only such a listener allows
	// changes without a token.
	Loopback bool
	// Hosts are the names of the listener, besides addresses, localhost and, if it is not on
	// loopback, names that only a cluster has.
	Hosts []string
	// Token returns the token that a request must have to change state, and its name for the
	// audit log; "": none is configured. It is called for each request.
	Token   func() (name, token string, err error)
	Version string
	Started time.Time
	Log     *slog.Logger
}

// New returns the handler of the admin listener: /metrics, /healthz (the process runs), /readyz
// (Ready returns nil), /debug/pprof/, for requests that may change something, and /api/v1/,
// which openapi.yaml describes.
func New(c Config) http.Handler {
	g := newGuard(c)
	profiles := http.NewServeMux()
	profiles.HandleFunc("/debug/pprof/", pprof.Index)
	profiles.HandleFunc("/debug/pprof/cmdline", pprof.Cmdline)
	profiles.HandleFunc("/debug/pprof/profile", pprof.Profile)
	profiles.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
	profiles.HandleFunc("/debug/pprof/trace", pprof.Trace)

	read := http.NewServeMux()
	read.Handle("/metrics", promhttp.HandlerFor(c.Gatherer, promhttp.HandlerOpts{EnableOpenMetrics: true}))
	read.HandleFunc("/healthz", func(w http.ResponseWriter, _ *http.Request) { _, _ = fmt.Fprintln(w, "ok") })
	read.HandleFunc("/readyz", func(w http.ResponseWriter, _ *http.Request) {
		if err := c.Ready(); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		_, _ = fmt.Fprintln(w, "ok")
	})

	m := mux.NewRouter()
	m.PathPrefix("/debug/pprof/").Handler(g.protect(profiles, true))
	m.PathPrefix(apiRoot).Handler(newAPI(c, g)) // it admits requests itself, to record those that it refuses
	m.PathPrefix("/").Handler(g.protect(read, false))
	return besidesProbes(m)
}
