package index

import (
	"container/heap"
	"context"
	"sync/atomic"
	"time"
)

// tagLedger bounds the bytes of tags and lists: a client that asks for many tags adds a
// record for each. Tags without stored content are evicted first: clients have only sent
// HEAD for them. Then the least recently checked are. Pinned tags are not evicted.
type tagLedger struct {
	*boundedRecords

	metrics *Metrics
	pinned  func(upstream, repository string) bool
	listed  atomic.Pointer[func(upstream string) bool] // see [Index.SetListed]
}

func newTagLedger(x *Index, cfg Config, m *Metrics) *tagLedger {
	m.tagsLimit.Set(float64(cfg.Max))
	l := &tagLedger{metrics: m, pinned: cfg.Pinned}
	l.boundedRecords = &boundedRecords{
		index: x, kind: 't', name: "tags", max: cfg.Max, wanted: make(chan struct{}, 1), rest: cfg.Rest, pick: l.pick,
		changed: func(bytes, count int64) {
			m.tags.Set(float64(count))
			m.tagsBytes.Set(float64(bytes))
		},
		gone: func(count int64) { m.evictedTags.Add(float64(count)) },
	}
	return l
}

// put writes a record, which expires after keep.
func (l *tagLedger) put(k TagKey, t Tag, keep time.Duration) error {
	recorded, err := l.boundedRecords.put(tagKey(k), t.encode(), keep)
	if err == nil && !recorded {
		l.metrics.unrecordedTags.Inc()
	}
	return err
}

// pick returns the records to evict for so many bytes.
func (l *tagLedger) pick(ctx context.Context, take int64) ([]recordVictim, error) {
	sizes := map[cell]int64{}
	err := l.cells(ctx, func(c cell, key, value []byte, _ Tag) { sizes[c] += recordBytes(key, value) })
	if err != nil {
		return nil, err
	}
	oldest := map[cell]*oldestTags{}
	for c, bytes := range parts(sizes, take) {
		oldest[c] = &oldestTags{want: bytes}
	}
	err = l.cells(ctx, func(c cell, key, value []byte, t Tag) {
		if o := oldest[c]; o != nil {
			o.offer(key, value, t.Checked.UnixNano())
		}
	})
	var picked []recordVictim
	for _, o := range oldest {
		for _, v := range o.list {
			picked = append(picked, v.recordVictim)
		}
	}
	return picked, err
}

// cells calls visit for each record that may be evicted. key and value are valid only during
// the call.
func (l *tagLedger) cells(ctx context.Context, visit func(c cell, key, value []byte, t Tag)) error {
	var last TagKey // the previous record's; pinned and group are those of its repository
	var pinned bool
	var group string
	return l.each(ctx, func(key, value []byte) {
		k, err := decodeTagKey(key)
		t, terr := decodeTag(value)
		if err != nil || terr != nil {
			return
		}
		if k.Upstream != last.Upstream || k.Repository != last.Repository {
			last, pinned, group = k, l.pinned(k.Upstream, k.Repository), l.group(k.Upstream)
		}
		if !pinned {
			// read and not get: a scan must not push out of recent what clients use.
			_, kept, lerr := l.index.read(linkKey(Place{Upstream: k.Upstream, Repository: k.Repository, Manifest: !k.IsList()}, t.Digest))
			visit(cell{kept || lerr != nil, group}, key, value, t)
		}
	})
}

// group returns the group of an upstream's records: see cell.
func (l *tagLedger) group(upstream string) string {
	if listed := l.listed.Load(); listed != nil && !(*listed)(upstream) {
		return ""
	}
	return upstream
}

// tagVictim is a tag that may be evicted.
type tagVictim struct {
	recordVictim

	checked int64 // Unix nanoseconds
}

// oldestTags are the least recently checked of the offered tags, up to want bytes: a heap
// with the most recent on top.
type oldestTags struct {
	want, sum int64
	list      []tagVictim
}

func (o *oldestTags) offer(key, value []byte, checked int64) {
	if o.sum >= o.want && checked >= o.list[0].checked {
		return
	}
	v := tagVictim{newVictim(key, value), checked}
	heap.Push(o, v)
	for o.sum += v.bytes(); o.sum-o.list[0].bytes() >= o.want; {
		o.sum -= heap.Pop(o).(tagVictim).bytes()
	}
}

func (o *oldestTags) Len() int           { return len(o.list) }
func (o *oldestTags) Less(i, j int) bool { return o.list[i].checked > o.list[j].checked }
func (o *oldestTags) Swap(i, j int)      { o.list[i], o.list[j] = o.list[j], o.list[i] }
func (o *oldestTags) Push(v any)         { o.list = append(o.list, v.(tagVictim)) }
func (o *oldestTags) Pop() any {
	v := o.list[len(o.list)-1]
	o.list = o.list[:len(o.list)-1]
	return v
}
