package server

import (
	"container/list"
	"net"
	"sync"
)

// acceptQueue has the connections that wait for a place. Clients take turns: a client that
// opens thousands of connections delays only its own.
type acceptQueue struct {
	ready chan struct{} // has a value for each connection
	left  chan struct{} // has a value when the queue has room again

	mu      sync.Mutex               // guards the fields below
	turns   *list.List               // of *waiting: clients, the next first
	clients map[string]*list.Element // of turns
	len     int                      // the number of all clients' connections
}

// waiting are the connections of one client, at least one.
type waiting struct {
	client string
	conns  []*net.TCPConn
}

func newAcceptQueue(places int) *acceptQueue {
	return &acceptQueue{ready: make(chan struct{}, places), left: make(chan struct{}, 1), turns: list.New(), clients: map[string]*list.Element{}}
}

// add adds a connection; false: the queue is full.
func (q *acceptQueue) add(client string, c *net.TCPConn) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.len == cap(q.ready) {
		return false
	}
	e := q.clients[client]
	if e == nil {
		e = q.turns.PushBack(&waiting{client: client})
		q.clients[client] = e
	}
	w := e.Value.(*waiting)
	w.conns = append(w.conns, c)
	q.len++
	q.ready <- struct{}{} // never blocks: its capacity is the queue's
	return true
}

// next removes and returns the first connection of the client whose turn it is; nil: none
// waits. It is called for each value of ready.
func (q *acceptQueue) next() *net.TCPConn {
	q.mu.Lock()
	defer q.mu.Unlock()
	e := q.turns.Front()
	if e == nil {
		return nil
	}
	w := e.Value.(*waiting)
	c := w.conns[0]
	w.conns[0], w.conns = nil, w.conns[1:]
	q.turns.MoveToBack(e)
	q.shrunk(e)
	return c
}

// displace removes and returns the last connection of the client with the most, if that has
// more than the given client would have with one more; otherwise it returns nil.
func (q *acceptQueue) displace(client string) *net.TCPConn {
	q.mu.Lock()
	defer q.mu.Unlock()
	most, mine := 1, 0
	var of *list.Element
	for e := q.turns.Front(); e != nil; e = e.Next() {
		w := e.Value.(*waiting)
		if w.client == client {
			mine = len(w.conns)
		}
		if len(w.conns) > most {
			most, of = len(w.conns), e
		}
	}
	if most <= mine+1 {
		return nil
	}
	<-q.ready
	w := of.Value.(*waiting)
	c := w.conns[most-1]
	w.conns = w.conns[:most-1]
	q.shrunk(of)
	return c
}

// shrunk is called when a client has one connection less. q.mu is held.
func (q *acceptQueue) shrunk(e *list.Element) {
	if w := e.Value.(*waiting); len(w.conns) == 0 {
		q.turns.Remove(e)
		delete(q.clients, w.client)
	}
	q.len--
	select {
	case q.left <- struct{}{}:
	default: // signaled already
	}
}
