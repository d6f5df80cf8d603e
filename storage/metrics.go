package storage

import "github.com/prometheus/client_golang/prometheus"

// Metrics of one [Store]. The caller registers them and adds the prefix.
type Metrics struct {
	fills        prometheus.Gauge
	resumes      prometheus.Counter
	failures     *prometheus.CounterVec
	spills       prometheus.Counter
	bytes        prometheus.Gauge
	partial      prometheus.Gauge
	limit        prometheus.Gauge
	blobs        prometheus.Gauge
	evictedBytes prometheus.Counter
	evictionAge  prometheus.Histogram

	scrubbed        prometheus.Counter
	quarantined     prometheus.Counter
	quarantineBytes prometheus.Gauge
}

// NewMetrics returns metrics at zero.
func NewMetrics() *Metrics {
	m := &Metrics{
		fills: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "fills_in_progress", Help: "Downloads from upstreams in progress.",
		}),
		resumes: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "fill_resumes_total", Help: "Downloads that broke and were continued where they stopped.",
		}),
		failures: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "fill_failures_total", Help: "Downloads that ended without a blob, by reason: upstream, digest, disk or closed.",
		}, []string{"reason"}),
		spills: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "fill_spills_total", Help: "Downloads passed on to clients without being kept, for want of disk space.",
		}),
		bytes: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "storage_bytes", Help: "Bytes that blobs take on disk, in blocks of 4 KiB.",
		}),
		partial: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "storage_partial_bytes", Help: "Bytes that downloads in progress or broken off take on disk, in blocks of 4 KiB.",
		}),
		limit: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "storage_limit_bytes", Help: "Bytes that blobs and downloads may take on disk; 0 is no limit but free space.",
		}),
		blobs: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "storage_blobs", Help: "Blobs on disk.",
		}),
		evictedBytes: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "evicted_bytes_total", Help: "Bytes on disk of blobs removed to make room, or because their time was over.",
		}),
		evictionAge: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "eviction_age_seconds", Help: "Time since last use of blobs removed to make room, or because their time was over.",
			Buckets: []float64{60, 600, 3600, 6 * 3600, 86400, 3 * 86400, 7 * 86400, 30 * 86400},
		}),
		scrubbed: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "scrubbed_bytes_total", Help: "Bytes of blobs read again to compare their digests.",
		}),
		quarantined: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "quarantined_blobs_total", Help: "Blobs found damaged on disk and taken away, to be fetched anew.",
		}),
		quarantineBytes: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "quarantine_bytes", Help: "Bytes of damaged blobs kept to be looked at; they count towards the limit of storage_bytes.",
		}),
	}
	for _, reason := range []string{reasonUpstream, reasonDigest, reasonDisk, reasonClosed} {
		m.failures.WithLabelValues(reason)
	}
	return m
}

// Collectors are what the caller registers.
func (m *Metrics) Collectors() []prometheus.Collector {
	return []prometheus.Collector{
		m.fills, m.resumes, m.failures, m.spills, m.bytes, m.partial, m.limit, m.blobs, m.evictedBytes, m.evictionAge,
		m.scrubbed, m.quarantined, m.quarantineBytes,
	}
}

// Reasons of fill_failures_total.
const (
	reasonUpstream = "upstream"
	reasonDigest   = "digest"
	reasonDisk     = "disk"
	reasonClosed   = "closed"
)
