package trace

import "container/list"

// TinyLFU is W-TinyLFU with size-aware admission by aggregated victims (Einziger, Eytan,
// Friedman and Manes, ACM ToS 2022): an object that leaves a window of 1 % enters main only
// if it was requested more often than all its victims together. Main is a segmented LRU.
// Frequencies are exact, where a real cache has a sketch, and halve after ten times as many
// requests as there are objects.
func TinyLFU(capacity int64) Policy {
	return &tinyLFU{capacity: capacity, objects: make(map[uint64]*list.Element), counts: make(map[uint64]int)}
}

type tinyLFU struct {
	capacity                     int64
	objects                      map[uint64]*list.Element
	window, probation, protected queue
	counts                       map[uint64]int
	sample                       int
}

func (p *tinyLFU) Used() int64 { return p.window.bytes + p.probation.bytes + p.protected.bytes }

func (p *tinyLFU) windowSize() int64 { return p.capacity / 100 }
func (p *tinyLFU) mainSize() int64   { return p.capacity - p.windowSize() }

func (p *tinyLFU) Get(r Request) bool {
	p.count(r.Key)
	if e, ok := p.objects[r.Key]; ok {
		p.hit(e)
		return true
	}
	if r.Size > p.mainSize() {
		return false
	}
	p.objects[r.Key] = p.window.push(&queued{Request: r})
	for p.window.bytes > p.windowSize() {
		p.admit(p.window.take(p.window.Back()))
	}
	return false
}

func (p *tinyLFU) hit(e *list.Element) {
	o := e.Value.(*queued)
	if o.place != &p.probation {
		o.place.MoveToFront(e)
		return
	}
	p.probation.take(e)
	p.objects[o.Key] = p.protected.push(o)
	for p.protected.bytes > p.mainSize()*4/5 {
		o := p.protected.take(p.protected.Back())
		p.objects[o.Key] = p.probation.push(o)
	}
}

// admit moves the candidate to main, or drops it.
func (p *tinyLFU) admit(o *queued) {
	free := p.mainSize() - p.probation.bytes - p.protected.bytes
	var victims []*list.Element
	worth := 0
	for _, q := range []*queue{&p.probation, &p.protected} {
		for e := q.Back(); e != nil && free < o.Size; e = e.Prev() {
			v := e.Value.(*queued)
			free += v.Size
			worth += p.counts[v.Key]
			victims = append(victims, e)
		}
	}
	if len(victims) > 0 && p.counts[o.Key] <= worth {
		delete(p.objects, o.Key)
		// Else the same victims would block all later candidates.
		for _, e := range victims {
			e.Value.(*queued).place.MoveToFront(e)
		}
		return
	}
	for _, e := range victims {
		v := e.Value.(*queued)
		v.place.take(e)
		delete(p.objects, v.Key)
	}
	p.objects[o.Key] = p.probation.push(o)
}

func (p *tinyLFU) count(key uint64) {
	p.counts[key]++
	if p.sample++; p.sample < 10*max(len(p.objects), 1) {
		return
	}
	p.sample /= 2
	for k, n := range p.counts {
		if n /= 2; n > 0 {
			p.counts[k] = n
		} else {
			delete(p.counts, k)
		}
	}
}
