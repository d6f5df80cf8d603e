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
			Help: "Whether the last load of the configuration file succeeded.",
		}),
	}
	m.panics = prometheus.NewCounter(prometheus.CounterOpts{
		Name: "panics_total",
		Help: "Panics. Each is a bug, ended one request, download or check, and has its stack in the log.",
	})
	m.reloaded.Set(1)
	buildInfo := prometheus.NewGauge(prometheus.GaugeOpts{
		Name:        "build_info",
		Help:        "Version of this process; always 1.",
		ConstLabels: prometheus.Labels{"version": b.Version, "revision": b.Revision, "go_version": runtime.Version()},
	})
	buildInfo.Set(1)
	connectionsLimit := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "connections_limit",
		Help: "Limit on open client connections. At the limit idle ones are closed for new ones; without idle ones, new ones wait.",
	})
	connectionsLimit.Set(float64(limit))
	own := []prometheus.Collector{m.reloaded, m.panics, buildInfo, prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "connections",
		Help: "Open client connections.",
	}, open), connectionsLimit, prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "memory_budget_used_bytes",
		Help: "Memory in use of the budget for manifests and lists.",
	}, func() float64 { return float64(memory.Taken()) }), prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "memory_budget_bytes",
		Help: "Budget for manifests and lists in memory: a quarter of the memory limit. Requests above it are answered 503.",
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
