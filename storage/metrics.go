package storage

import (
	"math"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/cachalot-registry/cachalot/storage/index"
)

// Metrics of one [Store]. The caller registers them and adds the prefix.
type Metrics struct {
	prometheus.Collector // all of them

	fills         prometheus.Gauge
	fillsWaiting  prometheus.Gauge
	fillsLimit    prometheus.Gauge
	resumes       prometheus.Counter
	failures      *prometheus.CounterVec
	passedThrough prometheus.Counter
	bytes         prometheus.Gauge
	partial       prometheus.Gauge
	limit         prometheus.Gauge
	blobs         prometheus.Gauge
	disk          atomic.Pointer[disk] // each scrape reads its free space; nil before Open
	minFree       prometheus.Gauge
	evictedBytes  *prometheus.CounterVec
	evictionAge   *prometheus.HistogramVec

	scrubbed        prometheus.Counter
	quarantined     prometheus.Counter
	quarantineBytes prometheus.Gauge

	index *index.Metrics
}

// NewMetrics returns metrics at zero.
func NewMetrics() *Metrics {
	all := prometheus.NewRegistry()
	reg := promauto.With(all)
	m := &Metrics{
		Collector: all, index: index.NewMetrics(),
		fills: reg.NewGauge(prometheus.GaugeOpts{
			Name: "fills_in_progress", Help: "Downloads from upstreams in progress.",
		}),
		fillsWaiting: reg.NewGauge(prometheus.GaugeOpts{
			Name: "fills_waiting", Help: "Downloads that wait for one of those in progress to end.",
		}),
		fillsLimit: reg.NewGauge(prometheus.GaugeOpts{
			Name: "fills_limit", Help: "Downloads that may be in progress at once; further ones wait.",
		}),
		resumes: reg.NewCounter(prometheus.CounterOpts{
			Name: "fill_resumes_total", Help: "Downloads that broke and were continued where they stopped.",
		}),
		failures: reg.NewCounterVec(prometheus.CounterOpts{
			Name: "fill_failures_total", Help: "Downloads that ended without a blob, by reason: upstream, digest (wrong content), disk or closed. What an upstream does not have counts as none.",
		}, []string{"reason"}),
		passedThrough: reg.NewCounter(prometheus.CounterOpts{
			Name: "fills_passed_through_total", Help: "Downloads passed through to clients and not stored, because there was no disk space.",
		}),
		bytes: reg.NewGauge(prometheus.GaugeOpts{
			Name: "storage_bytes", Help: "Bytes that blobs take on disk, in blocks of 4 KiB.",
		}),
		partial: reg.NewGauge(prometheus.GaugeOpts{
			Name: "storage_partial_bytes", Help: "Bytes that downloads in progress or broken off take on disk, in blocks of 4 KiB.",
		}),
		limit: reg.NewGauge(prometheus.GaugeOpts{
			Name: "storage_limit_bytes", Help: "Bytes that blobs and downloads may take on disk; 0 is no limit but free space.",
		}),
		blobs: reg.NewGauge(prometheus.GaugeOpts{
			Name: "storage_blobs", Help: "Blobs on disk.",
		}),
		minFree: reg.NewGauge(prometheus.GaugeOpts{
			Name: "storage_min_free_bytes", Help: "Free space that is left to others on the disk: blobs are evicted, or not stored, to keep it.",
		}),
		evictedBytes: reg.NewCounterVec(prometheus.CounterOpts{
			Name: "evicted_bytes_total", Help: "Bytes on disk of removed blobs, by reason: space (evicted for other blobs), age (keep_for was over) or purge (an operator removed them).",
		}, []string{"reason"}),
		evictionAge: reg.NewHistogramVec(prometheus.HistogramOpts{
			Name: "eviction_age_seconds", Help: "Time since last use of removed blobs, by reason: space (evicted for other blobs) or age (keep_for was over).",
			Buckets:                         []float64{60, 600, 3600, 6 * 3600, 86400, 3 * 86400, 7 * 86400, 30 * 86400},
			NativeHistogramBucketFactor:     1.1,
			NativeHistogramMaxBucketNumber:  160,
			NativeHistogramMinResetDuration: time.Hour,
		}, []string{"reason"}),
		scrubbed: reg.NewCounter(prometheus.CounterOpts{
			Name: "scrubbed_bytes_total", Help: "Bytes of blobs read again to compare their digests.",
		}),
		quarantined: reg.NewCounter(prometheus.CounterOpts{
			Name: "quarantined_blobs_total", Help: "Blobs found damaged on disk and quarantined or removed; the next request downloads them.",
		}),
		quarantineBytes: reg.NewGauge(prometheus.GaugeOpts{
			Name: "quarantine_bytes", Help: "Bytes of damaged blobs in quarantine; they count towards the limit of storage_bytes.",
		}),
	}
	for _, reason := range []string{reasonUpstream, reasonDigest, reasonDisk, reasonClosed} {
		m.failures.WithLabelValues(reason)
	}
	m.evictedBytes.WithLabelValues(reasonPurge)
	for _, reason := range []string{reasonSpace, reasonAge} {
		m.evictedBytes.WithLabelValues(reason)
		m.evictionAge.WithLabelValues(reason)
	}
	all.MustRegister(m.index)
	reg.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "storage_free_bytes", Help: "Free space on the disk that holds the blobs; NaN where it cannot be read.",
	}, func() float64 {
		if k := m.disk.Load(); k != nil {
			if free, _, err := k.space(); err == nil {
				return float64(free)
			}
		}
		return math.NaN()
	})
	return m
}

// Reasons of fill_failures_total.
const (
	reasonUpstream = "upstream"
	reasonDigest   = "digest"
	reasonDisk     = "disk"
	reasonClosed   = "closed"
)

// Reasons of evicted_bytes_total and, except purge, of eviction_age_seconds.
const (
	reasonSpace = "space"
	reasonAge   = "age"
	reasonPurge = "purge"
)
