package trace

import "container/list"

// queued is an object in a queue.
type queued struct {
	Request
	uses  int
	place *queue
}

// queue is a list of objects with their sum of bytes. The newest is in front.
type queue struct {
	list.List
	bytes int64
}

func (q *queue) push(o *queued) *list.Element {
	q.bytes += o.Size
	o.place = q
	return q.PushFront(o)
}

func (q *queue) take(e *list.Element) *queued {
	o := e.Value.(*queued)
	q.bytes -= o.Size
	q.Remove(e)
	return o
}

// SIEVE (Zhang and others, NSDI 2024), with the capacity in bytes: a hand goes from the
// oldest to the newest. It skips used objects once, and evicts the others.
func SIEVE(capacity int64) Policy {
	return &sieve{capacity: capacity, objects: make(map[uint64]*list.Element)}
}

type sieve struct {
	capacity int64
	objects  map[uint64]*list.Element
	queue    queue
	hand     *list.Element
}

func (p *sieve) Used() int64 { return p.queue.bytes }

func (p *sieve) Get(r Request) bool {
	if e, ok := p.objects[r.Key]; ok {
		e.Value.(*queued).uses = 1
		return true
	}
	if r.Size > p.capacity {
		return false
	}
	for p.queue.bytes+r.Size > p.capacity {
		p.evict()
	}
	p.objects[r.Key] = p.queue.push(&queued{Request: r})
	return false
}

func (p *sieve) evict() {
	e := p.hand
	for {
		if e == nil {
			e = p.queue.Back()
		}
		o := e.Value.(*queued)
		if o.uses == 0 {
			break
		}
		o.uses = 0
		e = e.Prev()
	}
	p.hand = e.Prev()
	delete(p.objects, p.queue.take(e).Key)
}

// S3FIFO (Yang and others, SOSP 2023), with the capacity in bytes: a tenth for new objects,
// the rest for those used there more than once, and a list of the keys that left the tenth.
func S3FIFO(capacity int64) Policy {
	return &s3fifo{capacity: capacity, objects: make(map[uint64]*list.Element), ghosts: make(map[uint64]*list.Element)}
}

type s3fifo struct {
	capacity           int64
	objects            map[uint64]*list.Element
	ghosts             map[uint64]*list.Element
	small, main, ghost queue
}

func (p *s3fifo) Used() int64 { return p.small.bytes + p.main.bytes }

func (p *s3fifo) Get(r Request) bool {
	if e, ok := p.objects[r.Key]; ok {
		o := e.Value.(*queued)
		o.uses = min(o.uses+1, 3)
		return true
	}
	if r.Size > p.capacity {
		return false
	}
	for p.Used()+r.Size > p.capacity {
		p.evict()
	}
	to := &p.small
	if e, ok := p.ghosts[r.Key]; ok {
		p.ghost.take(e)
		delete(p.ghosts, r.Key)
		to = &p.main
	}
	p.objects[r.Key] = to.push(&queued{Request: r})
	return false
}

func (p *s3fifo) evict() {
	if p.small.Len() > 0 && (p.small.bytes > p.capacity/10 || p.main.Len() == 0) {
		p.evictSmall()
		return
	}
	for {
		o := p.main.take(p.main.Back())
		if o.uses == 0 {
			delete(p.objects, o.Key)
			return
		}
		o.uses--
		p.objects[o.Key] = p.main.push(o)
	}
}

// evictSmall moves used objects on to main, until it evicts one.
func (p *s3fifo) evictSmall() {
	for p.small.Len() > 0 {
		o := p.small.take(p.small.Back())
		if o.uses > 1 {
			o.uses = 0
			p.objects[o.Key] = p.main.push(o)
			continue
		}
		delete(p.objects, o.Key)
		p.ghosts[o.Key] = p.ghost.push(o)
		for p.ghost.bytes > p.capacity-p.capacity/10 {
			delete(p.ghosts, p.ghost.take(p.ghost.Back()).Key)
		}
		return
	}
}
