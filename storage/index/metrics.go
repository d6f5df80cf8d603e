package index

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

// Metrics of one [Index]. The caller registers them and adds the prefix.
type Metrics struct {
	prometheus.Collector // all of them

	tags           prometheus.Gauge
	tagsBytes      prometheus.Gauge
	tagsLimit      prometheus.Gauge
	evictedTags    prometheus.Counter
	unrecordedTags prometheus.Counter
}

// NewMetrics returns metrics at zero.
func NewMetrics() *Metrics {
	all := prometheus.NewRegistry()
	reg := promauto.With(all)
	return &Metrics{
		Collector: all,
		tags: reg.NewGauge(prometheus.GaugeOpts{
			Name: "storage_tags", Help: "Tags and lists in the index, with or without stored content.",
		}),
		tagsBytes: reg.NewGauge(prometheus.GaugeOpts{
			Name: "storage_tags_bytes", Help: "Bytes that tags and lists take of the index.",
		}),
		tagsLimit: reg.NewGauge(prometheus.GaugeOpts{
			Name: "storage_tags_limit_bytes", Help: "Bytes that tags and lists may take of the index; 0 is no limit.",
		}),
		evictedTags: reg.NewCounter(prometheus.CounterOpts{
			Name: "evicted_tags_total", Help: "Tags and lists evicted from the index, to keep it within its limit.",
		}),
		unrecordedTags: reg.NewCounter(prometheus.CounterOpts{
			Name: "unrecorded_tags_total", Help: "Tags and lists that were not recorded, because the index was full.",
		}),
	}
}
