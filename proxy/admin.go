package proxy

import (
	"fmt"
	"log/slog"
	"net/http"
	"net/http/pprof"
	"time"

	"github.com/gorilla/mux"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// AdminConfig is what the admin listener needs.
type AdminConfig struct {
	Gatherer prometheus.Gatherer
	Ready    func() error // what /readyz says
	// Current returns the Proxy that answers clients now, which stays open until
	// done is called; nil while the process ends.
	Current func() (p *Proxy, done func())
	// Loopback: the listener is bound to a loopback address. Only there may state
	// be changed without a token.
	Loopback bool
	// Token returns what a request that changes state must show, and its name for
	// the audit log; "" where none is configured. It is asked each time.
	Token   func() (name, token string, err error)
	Version string
	Started time.Time
	Log     *slog.Logger
}

// NewAdmin returns the handler of the admin listener: /metrics, /healthz (the
// process runs), /readyz (Ready returns nil), /debug/pprof/, and /api/v1/, which
// openapi.yaml describes.
func NewAdmin(c AdminConfig) http.Handler {
	m := mux.NewRouter()
	m.Handle("/metrics", promhttp.HandlerFor(c.Gatherer, promhttp.HandlerOpts{EnableOpenMetrics: true}))
	m.HandleFunc("/healthz", func(w http.ResponseWriter, _ *http.Request) { _, _ = fmt.Fprintln(w, "ok") })
	m.HandleFunc("/readyz", func(w http.ResponseWriter, _ *http.Request) {
		if err := c.Ready(); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		_, _ = fmt.Fprintln(w, "ok")
	})
	m.HandleFunc("/debug/pprof/cmdline", pprof.Cmdline)
	m.HandleFunc("/debug/pprof/profile", pprof.Profile)
	m.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
	m.HandleFunc("/debug/pprof/trace", pprof.Trace)
	m.PathPrefix("/debug/pprof/").HandlerFunc(pprof.Index)
	m.PathPrefix(apiRoot).Handler(newAPI(c))
	return besidesProbes(m)
}
