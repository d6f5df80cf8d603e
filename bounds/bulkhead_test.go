package bounds

import (
	"fmt"
	"math/rand/v2"
	"testing"
)

// enter takes all places that a holder can get, and returns how many.
func enter(b *Bulkhead, h Holder) (n int) {
	for b.Enter(h) {
		n++
	}
	return n
}

func TestBulkhead_Groups(t *testing.T) {
	t.Parallel()
	for limit, want := range map[int]int{1: 1, 2: 1, 5: 4, 9: 8, 20: 8, 100: 25, 256: 64} {
		b := NewBulkhead(limit, DefaultShare)
		if got := enter(b, Holder{Group: "a"}); got != want || b.GroupLimit() != want {
			t.Errorf("of %d places a group takes %d, its limit is %d, want %d", limit, got, b.GroupLimit(), want)
		}
		if got := enter(b, Holder{Group: "b"}); got < min(want, limit-want) {
			t.Errorf("of %d places another takes %d", limit, got)
		}
	}
}

func TestBulkhead_Clients(t *testing.T) {
	t.Parallel()
	b := NewBulkhead(100, DefaultShare)
	if got := enter(b, Holder{Client: "greedy"}); got != 75 {
		t.Errorf("a client alone takes %d of 100, want 75", got)
	}
	if got := enter(b, Holder{Client: "other"}); got != 25 {
		t.Errorf("another takes %d, want 25", got)
	}
	if b.Taken() != 100 || b.Enter(Holder{}) {
		t.Errorf("%d taken", b.Taken())
	}
	b.Leave(Holder{Client: "other"})
	if b.Enter(Holder{Client: "greedy"}) {
		t.Error("the last share goes to one that has more than a share")
	}
	if !b.Enter(Holder{Client: "third"}) {
		t.Error("a place is free, and a client with none does not get it")
	}
}

// TestBulkhead_ClientsOfGroup: one client cannot take all places of a group.
func TestBulkhead_ClientsOfGroup(t *testing.T) {
	t.Parallel()
	b := NewBulkhead(256, DefaultShare)
	if got := enter(b, Holder{Group: "docker.io", Client: "greedy"}); got != 48 {
		t.Errorf("a client takes %d of a group's 64, want 48", got)
	}
	if got := enter(b, Holder{Group: "docker.io", Client: "other"}); got != 16 {
		t.Errorf("another takes %d, want 16", got)
	}
	if got := enter(b, Holder{Group: "quay.io", Client: "greedy"}); got != 48 {
		t.Errorf("of another group it takes %d, want 48", got)
	}
}

// TestBulkhead_Repositories: one repository cannot take all places of its registry, even if
// many clients request it.
func TestBulkhead_Repositories(t *testing.T) {
	t.Parallel()
	for _, group := range []string{"", "docker.io"} {
		b := NewBulkhead(256, DefaultShare)
		want := 192
		if group != "" {
			want = 48
		}
		got := 0
		for client := 0; b.Enter(Holder{group, "hangs", fmt.Sprint(client % 20)}); client++ {
			got++
		}
		if got != want {
			t.Errorf("a repository of %q has %d places, want %d", group, got, want)
		}
		if got := enter(b, Holder{Group: group, Repository: "other"}); got != want/3 {
			t.Errorf("another has %d, want %d", got, want/3)
		}
	}
}

// TestBulkhead_Queue: waiting holders get places in order. A holder that may not have the free
// place is skipped.
func TestBulkhead_Queue(t *testing.T) {
	t.Parallel()
	b := NewBulkhead(8, DefaultShare)
	hangs := Holder{Repository: "hangs"}
	var leave []func()
	queue := func(h Holder) (ready <-chan struct{}) {
		ready, gone := b.Queue(h)
		leave = append(leave, gone)
		return ready
	}
	has := func(ready <-chan struct{}) bool {
		select {
		case <-ready:
			return true
		default:
			return false
		}
	}
	for range 6 {
		if !has(queue(hangs)) {
			t.Fatal("a place is free")
		}
	}
	seventh, given, eighth := queue(hangs), queue(hangs), queue(hangs)
	for range 2 {
		if !has(queue(Holder{Repository: "other"})) {
			t.Error("the last share is for other repositories")
		}
	}
	third := queue(Holder{Repository: "third"})
	if has(seventh) || has(third) {
		t.Error("there is no place")
	}
	leave[7]() // the second of hangs leaves the queue
	leave[0]()
	leave[0]()
	if has(seventh) || !has(third) {
		t.Error("the place is for one with less than a share")
	}
	for _, gone := range leave[1:4] { // two of these places are the last share
		gone()
	}
	if !has(seventh) || has(given) || has(eighth) {
		t.Error("they do not come in turn")
	}
	for _, gone := range leave {
		gone()
	}
	if b.Taken() != 0 || len(b.waiting) != 0 {
		t.Errorf("%d places are taken, %d wait", b.Taken(), len(b.waiting))
	}
}

// TestBulkhead_Random: no order of Enter and Leave exceeds a bound or leaves a count behind.
func TestBulkhead_Random(t *testing.T) {
	t.Parallel()
	b := NewBulkhead(40, DefaultShare)
	var held []Holder
	for range 20_000 {
		if len(held) > 0 && rand.IntN(2) == 0 {
			i := rand.IntN(len(held))
			b.Leave(held[i])
			held[i] = held[len(held)-1]
			held = held[:len(held)-1]
			continue
		}
		h := Holder{fmt.Sprint(rand.IntN(6)), fmt.Sprint(rand.IntN(6)), fmt.Sprint(rand.IntN(6))}
		if b.Enter(h) {
			held = append(held, h)
		}
		if b.Taken() != len(held) || len(held) > 40 || b.byGroup[h.Group] > b.GroupLimit() {
			t.Fatalf("%d taken, %d held, %d of a group", b.Taken(), len(held), b.byGroup[h.Group])
		}
	}
	for _, h := range held {
		b.Leave(h)
	}
	if n := b.Taken() + len(b.byGroup) + len(b.byClient) + len(b.byBoth) + len(b.byRepository); n != 0 {
		t.Errorf("%d left behind", n)
	}
}

func TestClient(t *testing.T) {
	t.Parallel()
	for address, want := range map[string]string{
		"192.0.2.1": "192.0.2.1", "::ffff:192.0.2.1": "::ffff:192.0.2.1", "": "", "x": "x",
		"2001:db8:1:2:3::4": "2001:db8:1:2::/64", "2001:db8:1:2:ffff::": "2001:db8:1:2::/64", "fe80::1%eth0": "fe80::/64",
	} {
		if got := Client(address); got != want {
			t.Errorf("%q is %q, want %q", address, got, want)
		}
	}
}
