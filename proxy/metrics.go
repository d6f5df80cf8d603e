package proxy

import (
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
	"go.opentelemetry.io/otel/trace"
)

// Metrics of a [Proxy]. The caller registers them and adds the prefix.
type Metrics struct {
	prometheus.Collector // all of them

	requests  *prometheus.CounterVec
	served    *prometheus.CounterVec
	firstByte *prometheus.HistogramVec
	busy      *prometheus.CounterVec
	inFlight  atomic.Int64
}

// NewMetrics returns metrics at zero.
func NewMetrics() *Metrics {
	all := prometheus.NewRegistry()
	reg := promauto.With(all)
	m := &Metrics{
		Collector: all,
		requests: reg.NewCounterVec(prometheus.CounterOpts{
			Name: "requests_total",
			Help: "Requests for content, by upstream (unknown: no such upstream, or not a valid name), kind (manifest, blob, tags, referrers) and result (hit, revalidated, miss, collapsed, stale, negative, denied, error).",
		}, []string{"upstream", "kind", "result"}),
		served: reg.NewCounterVec(prometheus.CounterOpts{
			Name: "served_bytes_total",
			Help: "Body bytes sent to clients, by upstream and kind.",
		}, []string{"upstream", "kind"}),
		firstByte: reg.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "first_byte_seconds",
			Help:    "Time from the arrival of a request to the first byte of its answer, by result.",
			Buckets: []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30},
		}, []string{"result"}),
	}
	m.busy = reg.NewCounterVec(prometheus.CounterOpts{
		Name: "busy_total",
		Help: "Requests answered 503 with Retry-After, by reason: checks (max_checks, fair_share), names (too many new unlisted registries) or memory (the budget for manifests and lists, a quarter of the limit).",
	}, []string{"reason"})
	for _, what := range []string{"checks", "names", "memory"} {
		m.busy.WithLabelValues(what)
	}
	reg.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "requests_in_flight", Help: "Client requests that are running.",
	}, func() float64 { return float64(m.inFlight.Load()) })
	return m
}

// observeFirstByte counts the time to the first byte. A recorded trace is its exemplar, which
// leads from a bucket to a request.
func (m *Metrics) observeFirstByte(w *response) {
	observer, seconds := m.firstByte.WithLabelValues(string(w.result)), w.firstByte.Seconds()
	if w.traced {
		at := trace.SpanContextFromContext(w.ctx)
		if with, ok := observer.(prometheus.ExemplarObserver); ok && at.IsSampled() {
			with.ObserveWithExemplar(seconds, prometheus.Labels{"trace_id": at.TraceID().String()})
			return
		}
	}
	observer.Observe(seconds)
}

// result of a request, as in requests_total.
type result string

const (
	resultHit         result = "hit"
	resultRevalidated result = "revalidated"
	resultMiss        result = "miss"
	resultCollapsed   result = "collapsed"
	resultStale       result = "stale"
	resultNegative    result = "negative"
	resultDenied      result = "denied"
	resultError       result = "error"
)
