package trace

import (
	"cmp"
	"container/heap"
)

// smallBlob is storage's constant: smaller blobs are evicted last.
const smallBlob = 64 << 10

// object is what a ranked policy stores of an object.
type object struct {
	Request         // of its last use
	class   int     // lower is evicted first
	value   float64 // within the class, lower is evicted first
	uses    float64
	first   int64 // when it was stored
	before  int64 // the time of the use before the last
	again   bool  // for [TwoQ]
	at      int   // index in the heap
}

func (o *object) less(p *object) bool {
	return cmp.Or(cmp.Compare(o.class, p.class), cmp.Compare(o.value, p.value), cmp.Compare(o.Key, p.Key)) < 0
}

// ranked evicts the object with the lowest class and value.
type ranked struct {
	capacity, used int64
	slack          int64 // bytes evicted beyond what is needed
	objects        map[uint64]*object
	order          objectHeap
	// use ranks an object after a request.
	use func(*object)
	// classify, if set, sets the class of every object before an eviction.
	classify func()
	// evicted, if set, is called for each evicted object.
	evicted func(*object)
}

func newRanked(capacity int64, use func(*object)) *ranked {
	return &ranked{capacity: capacity, objects: make(map[uint64]*object), use: use}
}

func (p *ranked) Used() int64 { return p.used }

func (p *ranked) Get(r Request) bool {
	if o, ok := p.objects[r.Key]; ok {
		o.before, o.Request = o.Time, r
		o.uses++
		p.use(o)
		heap.Fix(&p.order, o.at)
		return true
	}
	if r.Size > p.capacity {
		return false
	}
	if over := p.used + r.Size - p.capacity; over > 0 {
		p.free(over + p.slack)
	}
	o := &object{Request: r, uses: 1, first: r.Time}
	p.use(o)
	p.objects[r.Key] = o
	heap.Push(&p.order, o)
	p.used += r.Size
	return false
}

func (p *ranked) free(bytes int64) {
	if p.classify != nil {
		p.classify()
		heap.Init(&p.order)
	}
	for bytes > 0 && len(p.order) > 0 {
		bytes -= p.drop().Size
	}
}

// drop evicts the lowest object.
func (p *ranked) drop() *object {
	o := heap.Pop(&p.order).(*object)
	delete(p.objects, o.Key)
	p.used -= o.Size
	if p.evicted != nil {
		p.evicted(o)
	}
	return o
}

type objectHeap []*object

func (h objectHeap) Len() int           { return len(h) }
func (h objectHeap) Less(i, j int) bool { return h[i].less(h[j]) }
func (h objectHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].at, h[j].at = i, j
}

func (h *objectHeap) Push(v any) {
	o := v.(*object)
	o.at = len(*h)
	*h = append(*h, o)
}

func (h *objectHeap) Pop() any {
	old := *h
	o := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	return o
}

// LRU evicts the least recently used object.
func LRU(capacity int64) Policy {
	var clock float64
	return newRanked(capacity, func(o *object) {
		clock++
		o.value = clock
	})
}

// TTL drops an object a fixed number of seconds after its first fetch, used or not, as
// distribution's proxy does. The proxy has no limit in bytes; here the oldest is evicted to
// keep the limit.
func TTL(capacity, seconds int64) Policy {
	var clock float64
	return &ttl{seconds: seconds, ranked: newRanked(capacity, func(o *object) {
		if o.uses == 1 {
			clock++
			o.value = clock
		}
	})}
}

type ttl struct {
	*ranked
	seconds int64
}

func (p *ttl) Get(r Request) bool {
	for len(p.order) > 0 && p.order[0].first+p.seconds <= r.Time {
		p.drop()
	}
	return p.ranked.Get(r)
}

// class is storage's class: small blobs and manifests are evicted last.
func class(r Request) int {
	if r.Manifest || r.Size < smallBlob {
		return 1
	}
	return 0
}

// ClassedLRU evicts the least recently used objects in batches, small blobs and manifests last.
func ClassedLRU(capacity int64) Policy {
	p := newRanked(capacity, func(o *object) {
		o.class, o.value = class(o.Request), float64(o.Time)
	})
	p.slack = capacity / 20
	return p
}

// GDSF is Greedy Dual Size Frequency (Cherkasova, HP Labs 1998): an object's value is its
// uses times its cost divided by its size, plus the last victim's value. Cost 1 optimizes
// the object hit ratio.
func GDSF(capacity int64) Policy {
	return greedyDual(capacity, func(o *object) float64 { return o.uses / float64(max(o.Size, 1)) })
}

// LFUDA is LFU with dynamic ageing (Arlitt and others, 2000): GDSF with the size as cost,
// which optimizes the byte hit ratio.
func LFUDA(capacity int64) Policy {
	return greedyDual(capacity, func(o *object) float64 { return o.uses })
}

func greedyDual(capacity int64, worth func(*object) float64) *ranked {
	var inflation float64
	p := newRanked(capacity, func(o *object) { o.value = inflation + worth(o) })
	p.evicted = func(o *object) { inflation = o.value }
	return p
}

// TwoQ is storage's policy: simplified 2Q (Johnson and Shasha, VLDB 1994) in bytes and in
// batches. Objects used once are evicted first while they are more than a quarter, else the
// least recently used; small blobs and manifests last. Uses within a minute count once,
// because a pipeline's jobs start together.
func TwoQ(capacity int64) Policy {
	const first, second, small = 0, 1, 2
	p := newRanked(capacity, func(o *object) {
		o.value = float64(o.Time)
		o.again = o.again || o.uses > 1 && o.Time-o.before >= 60
	})
	p.slack = capacity / 20
	p.classify = func() {
		var once int64
		for _, o := range p.order {
			switch {
			case class(o.Request) == 1:
				o.class = small
			case o.again:
				o.class = second
			default:
				o.class = first
				once += o.Size
			}
		}
		if once > p.used/4 {
			return
		}
		for _, o := range p.order {
			o.class = max(o.class, second)
		}
	}
	return p
}
