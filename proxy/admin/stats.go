package admin

import (
	"fmt"
	"maps"
	"slices"
	"time"
)

// The types below are responses. In all of them, size is a blob's length, bytes is space on the
// disk (in blocks of 4 KiB), and a time is RFC 3339 in UTC. Unknown values are left out.

// StatsAnswer is the response of GET stats.
type StatsAnswer struct {
	Version   string          `json:"version"`
	Started   time.Time       `json:"started"`
	Now       time.Time       `json:"now"`
	Storage   StorageStats    `json:"storage"`
	Fills     FillStats       `json:"fills"`
	Traffic   TrafficStats    `json:"traffic"`
	Upstreams []UpstreamStats `json:"upstreams"`
}

// StorageStats is what is stored, and its limits.
type StorageStats struct {
	Counted         bool  `json:"counted"`
	Blobs           int64 `json:"blobs"`
	Bytes           int64 `json:"bytes"`
	PartialBytes    int64 `json:"partial_bytes"`
	ReservedBytes   int64 `json:"reserved_bytes"`
	QuarantineBytes int64 `json:"quarantine_bytes"`
	UnlinkedBlobs   int64 `json:"unlinked_blobs"`
	UnlinkedBytes   int64 `json:"unlinked_bytes"`
	LimitBytes      int64 `json:"limit_bytes"`
	LowMarkBytes    int64 `json:"low_mark_bytes"`
	MinFreeBytes    int64 `json:"min_free_bytes"`
	DiskBytes       int64 `json:"disk_bytes"`
	DiskFreeBytes   int64 `json:"disk_free_bytes"`
	MemoryBytes     int64 `json:"memory_bytes"`
	OpenBlobs       int   `json:"open_blobs"`
	IndexWaiting    int64 `json:"index_waiting"`
}

// FillStats is how many downloads run, and how many may at the same time.
type FillStats struct {
	Running int `json:"running"`
	Limit   int `json:"limit"`
}

// TrafficStats is the requests and bytes of clients, and the bytes of upstreams, since the
// start.
type TrafficStats struct {
	Requests     int64            `json:"requests"`
	Results      map[string]int64 `json:"results"`
	ServedBytes  int64            `json:"served_bytes"`
	FetchedBytes int64            `json:"fetched_bytes"`
	SavedBytes   int64            `json:"saved_bytes"`
}

// UpstreamStats is what is stored of an upstream, and its traffic.
type UpstreamStats struct {
	Name         string `json:"name"`
	Repositories int64  `json:"repositories"`
	Tags         int64  `json:"tags"`
	Blobs        int64  `json:"blobs"`
	Bytes        int64  `json:"bytes"`
	TrafficStats
}

func (c *call) stats() error {
	sum, err := c.p.Store().Summary(c.r.Context())
	if err != nil {
		return err
	}
	st := c.p.Store().Stats()
	answer := StatsAnswer{
		Version: c.Version, Started: c.Started.UTC(), Now: time.Now().UTC(),
		Storage: StorageStats{
			Counted: st.Counted, Blobs: st.Blobs, Bytes: st.Bytes, PartialBytes: st.Partial, ReservedBytes: st.Reserved,
			QuarantineBytes: st.Quarantine, UnlinkedBlobs: sum.Unlinked.Blobs, UnlinkedBytes: sum.Unlinked.DiskBytes,
			LimitBytes: st.MaxSize, LowMarkBytes: st.LowMark, MinFreeBytes: st.MinFree, DiskBytes: st.Total, DiskFreeBytes: st.Free,
			MemoryBytes: st.MemoryBytes, OpenBlobs: st.Open, IndexWaiting: st.WaitingForIndex,
		},
		Fills: FillStats{st.Fills, st.MaxFills},
	}
	traffic, err := c.traffic()
	if err != nil {
		return err
	}
	byName := map[string]*UpstreamStats{}
	of := func(name string) *UpstreamStats {
		if byName[name] == nil {
			byName[name] = &UpstreamStats{Name: name, TrafficStats: TrafficStats{Results: map[string]int64{}}}
		}
		return byName[name]
	}
	for _, u := range c.p.Upstreams() {
		if !u.Unlisted {
			of(u.Registry.Name())
		}
	}
	for _, u := range sum.Upstreams {
		s := of(u.Upstream)
		s.Repositories, s.Tags, s.Blobs, s.Bytes = u.Repositories, u.Tags, u.Blobs, u.DiskBytes
	}
	answer.Traffic.Results = map[string]int64{}
	for name, t := range traffic {
		of(name).TrafficStats = *t
		answer.Traffic.add(*t)
	}
	for _, name := range slices.Sorted(maps.Keys(byName)) {
		answer.Upstreams = append(answer.Upstreams, *byName[name])
	}
	return c.answer(answer)
}

func (t *TrafficStats) add(o TrafficStats) {
	t.Requests += o.Requests
	t.ServedBytes += o.ServedBytes
	t.FetchedBytes += o.FetchedBytes
	t.SavedBytes += o.SavedBytes
	for result, n := range o.Results {
		t.Results[result] += n
	}
}

// traffic returns the counters since the start, by upstream, from the metrics.
func (c *call) traffic() (map[string]*TrafficStats, error) {
	families, err := c.Gatherer.Gather()
	if err != nil {
		return nil, fmt.Errorf("read counters: %w", err)
	}
	traffic := map[string]*TrafficStats{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			labels := map[string]string{}
			for _, l := range m.GetLabel() {
				labels[l.GetName()] = l.GetValue()
			}
			name, n := labels["upstream"], int64(m.GetCounter().GetValue())
			t := traffic[name]
			if t == nil {
				t = &TrafficStats{Results: map[string]int64{}}
			}
			switch f.GetName() {
			case "cachalot_requests_total":
				t.Requests += n
				t.Results[labels["result"]] += n
			case "cachalot_served_bytes_total":
				t.ServedBytes += n
			case "cachalot_fetched_bytes_total":
				t.FetchedBytes += n
			default:
				continue
			}
			t.SavedBytes = t.ServedBytes - t.FetchedBytes
			traffic[name] = t
		}
	}
	return traffic, nil
}
