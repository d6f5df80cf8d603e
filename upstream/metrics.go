package upstream

import (
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Metrics counts what crosses the wire to upstreams. One instance serves all
// registries. The names lack the application's prefix, which its registerer adds.
type Metrics struct {
	fetched   *prometheus.CounterVec
	requests  *prometheus.CounterVec
	seconds   *prometheus.HistogramVec
	limit     *prometheus.GaugeVec
	remaining *prometheus.GaugeVec
}

func NewMetrics() *Metrics {
	return &Metrics{
		fetched: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "fetched_bytes_total",
			Help: "Body bytes read from upstreams.",
		}, []string{"upstream", "kind"}),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "upstream_requests_total",
			Help: "Requests sent to upstreams, redirects and token requests included, by status code (error: no answer).",
		}, []string{"upstream", "op", "code"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "upstream_request_seconds",
			Help:    "Time until an upstream's answer began.",
			Buckets: []float64{.005, .02, .05, .1, .2, .5, 1, 2, 5, 10, 30},
		}, []string{"upstream", "op"}),
		limit: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "upstream_ratelimit_limit",
			Help: "Pulls an upstream allows per window, as it last said.",
		}, []string{"upstream"}),
		remaining: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "upstream_ratelimit_remaining",
			Help: "Pulls left in an upstream's window, as it last said.",
		}, []string{"upstream"}),
	}
}

func (m *Metrics) Collectors() []prometheus.Collector {
	return []prometheus.Collector{m.fetched, m.requests, m.seconds, m.limit, m.remaining}
}

func (m *Metrics) answered(upstream, op, code string, took time.Duration) {
	m.requests.WithLabelValues(upstream, op, code).Inc()
	m.seconds.WithLabelValues(upstream, op).Observe(took.Seconds())
}

// codeLabel bounds the code label: the codes registries use, else the class.
func codeLabel(status int) string {
	switch status {
	case 200, 206, 301, 302, 303, 307, 308, 400, 401, 403, 404, 405, 416, 429, 500, 502, 503, 504:
		return strconv.Itoa(status)
	}
	return strconv.Itoa(status/100) + "xx"
}
