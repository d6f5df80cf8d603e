package server

import (
	"fmt"
	"runtime"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/cachalot-registry/cachalot/bounds"
	"github.com/cachalot-registry/cachalot/proxy"
	"github.com/cachalot-registry/cachalot/storage"
	"github.com/cachalot-registry/cachalot/upstream"
)

// metrics holds every package's, and those of the process itself.
type metrics struct {
	registry *prometheus.Registry
	storage  *storage.Metrics
	upstream *upstream.Metrics
	proxy    *proxy.Metrics
	reloaded prometheus.Gauge // 1 or 0: did the last reload succeed
	panics   prometheus.Counter
}

// newMetrics registers all metrics; open counts the clients' connections, of which
// there may be limit.
func newMetrics(b Build, memory *bounds.Memory, open func() float64, limit int) (*metrics, error) {
	m := &metrics{
		registry: prometheus.NewRegistry(),
		storage:  storage.NewMetrics(),
		upstream: upstream.NewMetrics(),
		proxy:    proxy.NewMetrics(),
		reloaded: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "config_last_reload_successful",
			Help: "Whether the last reading of the configuration file succeeded.",
		}),
	}
	m.panics = prometheus.NewCounter(prometheus.CounterOpts{
		Name: "panics_total",
		Help: "Panics, each of which ended the one request, download or check that it happened in. The log has their stacks; each is a bug.",
	})
	m.reloaded.Set(1)
	buildInfo := prometheus.NewGauge(prometheus.GaugeOpts{
		Name:        "build_info",
		Help:        "Which cachalot this is; always 1.",
		ConstLabels: prometheus.Labels{"version": b.Version, "revision": b.Revision, "go_version": runtime.Version()},
	})
	buildInfo.Set(1)
	connectionsLimit := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "connections_limit",
		Help: "Connections of clients that may be open at once. Idle ones are closed for further ones, which wait where there are none.",
	})
	connectionsLimit.Set(float64(limit))
	own := []prometheus.Collector{m.reloaded, m.panics, buildInfo, prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "connections",
		Help: "Open connections of clients.",
	}, open), connectionsLimit, prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "memory_budget_used_bytes",
		Help: "What manifests and lists that are held in memory take of their budget.",
	}, func() float64 { return float64(memory.Taken()) }), prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "memory_budget_bytes",
		Help: "The budget for manifests and lists in memory: a quarter of the memory limit. What does not fit is answered 503.",
	}, func() float64 { return float64(memory.Limit()) })}

	prefixed := prometheus.WrapRegistererWithPrefix("cachalot_", m.registry)
	for _, part := range [][]prometheus.Collector{own, m.storage.Collectors(), m.upstream.Collectors(), m.proxy.Collectors()} {
		for _, c := range part {
			if err := prefixed.Register(c); err != nil {
				return nil, fmt.Errorf("register metrics: %w", err)
			}
		}
	}
	for _, c := range []prometheus.Collector{
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
	} {
		if err := m.registry.Register(c); err != nil {
			return nil, fmt.Errorf("register metrics: %w", err)
		}
	}
	return m, nil
}
