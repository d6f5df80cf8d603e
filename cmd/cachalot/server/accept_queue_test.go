package server

import (
	"fmt"
	"net"
	"slices"
	"testing"
)

func TestAcceptQueue(t *testing.T) {
	t.Parallel()
	q := newAcceptQueue(6)
	names := map[*net.TCPConn]string{}
	add := func(client string, n int) bool {
		c := new(net.TCPConn)
		names[c] = fmt.Sprint(client, n)
		return q.add(client, c)
	}
	drain := func() (drained []string) {
		for range 6 {
			<-q.ready
			drained = append(drained, names[q.next()])
		}
		return drained
	}
	for n := range 5 {
		add("a", n)
	}
	if !add("b", 0) || add("c", 0) {
		t.Fatal("there are six places")
	}
	if c := q.displace("a"); c != nil {
		t.Errorf("%q makes place for one more of the client with the most", names[c])
	}
	if c := q.displace("c"); names[c] != "a4" {
		t.Errorf("%q makes place for c, want a4", names[c])
	}
	if !add("c", 0) || !slices.Equal(drain(), []string{"a0", "b0", "c0", "a1", "a2", "a3"}) {
		t.Error("they do not take turns")
	}
	for n := range 6 {
		add(fmt.Sprint("client", n), 0)
	}
	if c := q.displace("c"); c != nil {
		t.Errorf("%q makes place, and has no more than c", names[c])
	}
	drain()
	if q.next() != nil || len(q.clients) != 0 || q.turns.Len() != 0 || q.len != 0 {
		t.Errorf("%d, %d clients stay", q.len, len(q.clients))
	}
}
