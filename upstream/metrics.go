package upstream

import (
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

// Metrics are the metrics of requests to upstreams. One instance serves all registries.
// The names have no prefix of the application: its registerer adds that.
type Metrics struct {
	prometheus.Collector // all of them

	fetched   *prometheus.CounterVec
	requests  *prometheus.CounterVec
	seconds   *prometheus.HistogramVec
	limit     *prometheus.GaugeVec
	remaining *prometheus.GaugeVec

	up          *prometheus.GaugeVec
	lastSuccess *prometheus.GaugeVec
	credentials *prometheus.CounterVec // failures to get one
	refused     *prometheus.GaugeVec   // accounts whose login is refused
}

func NewMetrics() *Metrics {
	all := prometheus.NewRegistry()
	reg := promauto.With(all)
	return &Metrics{
		Collector: all,
		fetched: reg.NewCounterVec(prometheus.CounterOpts{
			Name: "fetched_bytes_total",
			Help: "Body bytes of content read from upstreams, by upstream and kind (manifest, blob, tags, referrers).",
		}, []string{"upstream", "kind"}),
		requests: reg.NewCounterVec(prometheus.CounterOpts{
			Name: "upstream_requests_total",
			Help: "Requests to upstreams, redirects and token requests included, by upstream, op and status code (error: no answer; canceled: no caller waited).",
		}, []string{"upstream", "op", "code"}),
		seconds: reg.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "upstream_request_seconds",
			Help:    "Time until an upstream's answer begins, by upstream and op.",
			Buckets: []float64{.005, .02, .05, .1, .2, .5, 1, 2, 5, 10, 30},

			NativeHistogramBucketFactor:     1.1,
			NativeHistogramMaxBucketNumber:  160,
			NativeHistogramMinResetDuration: time.Hour,
		}, []string{"upstream", "op"}),
		limit: reg.NewGaugeVec(prometheus.GaugeOpts{
			Name: "upstream_ratelimit_limit",
			Help: "Pulls that an upstream allows in its window, from its last answer.",
		}, []string{"upstream"}),
		remaining: reg.NewGaugeVec(prometheus.GaugeOpts{
			Name: "upstream_ratelimit_remaining",
			Help: "Pulls left in an upstream's window, from its last answer.",
		}, []string{"upstream"}),
		up: reg.NewGaugeVec(prometheus.GaugeOpts{
			Name: "upstream_up",
			Help: "Whether the host of an upstream's URL is asked: 0 after 5 failed requests in a row, until one succeeds.",
		}, []string{"upstream", "host"}),
		lastSuccess: reg.NewGaugeVec(prometheus.GaugeOpts{
			Name: "upstream_last_success_timestamp_seconds",
			Help: "Unix time of the last answer with a status below 500 from one of an upstream's own hosts.",
		}, []string{"upstream"}),
		credentials: reg.NewCounterVec(prometheus.CounterOpts{
			Name: "upstream_credential_failures_total",
			Help: "Failures to read or renew an account's credential, or to get it from its helper or cloud.",
		}, []string{"upstream"}),
		refused: reg.NewGaugeVec(prometheus.GaugeOpts{
			Name: "upstream_logins_refused",
			Help: "Accounts whose login is refused: they pause; stored content is served.",
		}, []string{"upstream"}),
	}
}

func (m *Metrics) answered(upstream, op, code string, took time.Duration) {
	m.requests.WithLabelValues(upstream, op, code).Inc()
	m.seconds.WithLabelValues(upstream, op).Observe(took.Seconds())
}

// codeLabel returns the code label: a code that registries use, else only the class, so
// that the label has few values.
func codeLabel(status int) string {
	switch status {
	case 200, 206, 301, 302, 303, 307, 308, 400, 401, 403, 404, 405, 416, 429, 500, 502, 503, 504:
		return strconv.Itoa(status)
	}
	return strconv.Itoa(status/100) + "xx"
}
