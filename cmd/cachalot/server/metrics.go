package server

import (
	"runtime"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/cachalot-registry/cachalot/bounds"
	"github.com/cachalot-registry/cachalot/proxy"
	"github.com/cachalot-registry/cachalot/storage"
	"github.com/cachalot-registry/cachalot/upstream"
)

// metrics holds the metrics of every package and of the process itself.
type metrics struct {
	registry *prometheus.Registry
	storage  *storage.Metrics
	upstream *upstream.Metrics
	proxy    *proxy.Metrics
	reloaded prometheus.Gauge // 1 or 0: did the last reload succeed
	panics   prometheus.Counter
}

// newMetrics registers all metrics. open counts the clients' connections; limit is their
// maximum.
func newMetrics(b Build, memory *bounds.Memory, open func() float64, limit int) *metrics {
	registry := prometheus.NewRegistry()
	prefixed := prometheus.WrapRegistererWithPrefix("cachalot_", registry)
	reg := promauto.With(prefixed)
	m := &metrics{
		registry: registry,
		storage:  storage.NewMetrics(),
		upstream: upstream.NewMetrics(),
		proxy:    proxy.NewMetrics(),
		reloaded: reg.NewGauge(prometheus.GaugeOpts{
			Name: "config_last_reload_successful",
			Help: "Whether the last load of the configuration file succeeded.",
		}),
		panics: reg.NewCounter(prometheus.CounterOpts{
			Name: "panics_total",
			Help: "Panics. Each is a bug, ended one request, download or check, and has its stack in the log.",
		}),
	}
	m.reloaded.Set(1)
	prefixed.MustRegister(m.storage, m.upstream, m.proxy)
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	reg.NewGauge(prometheus.GaugeOpts{
		Name:        "build_info",
		Help:        "Version of this process; always 1.",
		ConstLabels: prometheus.Labels{"version": b.Version, "revision": b.Revision, "go_version": runtime.Version()},
	}).Set(1)
	reg.NewGauge(prometheus.GaugeOpts{
		Name: "connections_limit",
		Help: "Limit on open client connections. At the limit idle ones are closed for new ones; without idle ones, new ones wait.",
	}).Set(float64(limit))
	reg.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "connections",
		Help: "Open client connections.",
	}, open)
	reg.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "memory_budget_used_bytes",
		Help: "Memory in use of the budget for manifests and lists.",
	}, func() float64 { return float64(memory.Taken()) })
	reg.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "memory_budget_bytes",
		Help: "Budget for manifests and lists in memory: a quarter of the memory limit. Requests above it are answered 503.",
	}, func() float64 { return float64(memory.Limit()) })
	return m
}

// watch exports when the clients' certificate expires.
func (m *metrics) watch(c *certificate) {
	promauto.With(prometheus.WrapRegistererWithPrefix("cachalot_", m.registry)).NewGaugeFunc(prometheus.GaugeOpts{
		Name: "tls_certificate_expiry_timestamp_seconds",
		Help: "Unix time at which the certificate of the clients' listener expires. It is absent without TLS.",
	}, func() float64 { return float64(c.expires().Unix()) })
}
