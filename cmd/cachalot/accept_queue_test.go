package main

import (
	"fmt"
	"net"
	"slices"
	"testing"
)

// numbered is a connection that is known by what it is called.
type numbered struct {
	net.Conn

	name string
}

func TestAcceptQueue(t *testing.T) {
	t.Parallel()
	q := newAcceptQueue(6)
	add := func(client string, n int) bool { return q.add(client, numbered{name: fmt.Sprint(client, n)}) }
	for n := range 5 {
		add("a", n)
	}
	if !add("b", 0) || add("c", 0) {
		t.Fatal("there are six places")
	}
	if c := q.displace("a"); c != nil {
		t.Errorf("%v makes place for one more of the client with the most", c)
	}
	if c := q.displace("c"); c.(numbered).name != "a4" {
		t.Errorf("%v makes place for c, want a4", c)
	}
	if !add("c", 0) || !slices.Equal(drain(q, 6), []string{"a0", "b0", "c0", "a1", "a2", "a3"}) {
		t.Error("they do not take turns")
	}
	for n := range 6 {
		add(fmt.Sprint("client", n), 0)
	}
	if c := q.displace("c"); c != nil {
		t.Errorf("%v makes place, and has no more than c", c)
	}
	drain(q, 6)
	if q.next() != nil || len(q.clients) != 0 || q.turns.Len() != 0 || q.len != 0 {
		t.Errorf("%d, %d clients stay", q.len, len(q.clients))
	}
}

func drain(q *acceptQueue, n int) []string {
	var names []string
	for range n {
		<-q.ready
		names = append(names, q.next().(numbered).name)
	}
	return names
}
