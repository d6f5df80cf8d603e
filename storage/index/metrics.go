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
			Name: "storage_tags", Help: "Tags and lists that the index knows of, kept or only asked for.",
		}),
		tagsBytes: reg.NewGauge(prometheus.GaugeOpts{
			Name: "storage_tags_bytes", Help: "Bytes that tags and lists take of the index.",
		}),
		tagsLimit: reg.NewGauge(prometheus.GaugeOpts{
			Name: "storage_tags_limit_bytes", Help: "Bytes that tags and lists may take of the index; 0 is no limit.",
		}),
		evictedTags: reg.NewCounter(prometheus.CounterOpts{
			Name: "evicted_tags_total", Help: "Tags and lists that the index has forgotten to make room for others.",
		}),
		unrecordedTags: reg.NewCounter(prometheus.CounterOpts{
			Name: "unrecorded_tags_total", Help: "Tags and lists that were not recorded, for the index had no room for them.",
		}),
	}
}
