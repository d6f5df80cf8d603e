package upstreamtest

import (
	"context"
	"encoding/binary"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/net/dns/dnsmessage"
)

// Names is a name server.
type Names struct {
	mu      sync.Mutex            // guards the fields below
	answers map[string][][]string // of each name in turn; the last one repeats
	asked   int
	gone    Gone
	changed chan struct{} // closed and replaced when gone changes
}

// Gone is the state of a name server.
type Gone int

const (
	Serving Gone = iota
	Refusing
	Silent
)

// NewNames starts a name server with the answers of each name, in turn. The last answer
// repeats. Other names do not exist.
func NewNames(answers map[string][][]string) *Names {
	return &Names{answers: answers, changed: make(chan struct{})}
}

// Forget makes a name one that does not exist.
func (n *Names) Forget(name string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.answers, name)
}

// Become makes the name server answer, refuse connections or keep silent. A client that waits
// for a silent server sees the end of its connection.
func (n *Names) Become(g Gone) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.gone = g
	close(n.changed)
	n.changed = make(chan struct{})
}

// Asked returns how many connections were made or tried.
func (n *Names) Asked() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.asked
}

// Resolver asks the name server over a pipe.
func (n *Names) Resolver() *net.Resolver {
	return &net.Resolver{PreferGo: true, Dial: func(_ context.Context, network, address string) (net.Conn, error) {
		n.mu.Lock()
		n.asked++
		gone, changed := n.gone, n.changed
		n.mu.Unlock()
		if gone == Refusing {
			return nil, &net.OpError{Op: "dial", Net: network, Err: syscall.ECONNREFUSED}
		}
		client, server := net.Pipe()
		go func() {
			defer server.Close()
			if gone == Silent {
				left := make(chan struct{})
				go func() {
					defer close(left)
					_, _ = io.Copy(io.Discard, server) // until the resolver gives up
				}()
				select {
				case <-left:
				case <-changed:
				}
				return
			}
			_ = n.serve(server) // the resolver closes when it has its answer
		}()
		return client, nil
	}}
}

// serve answers queries as they come over TCP (RFC 1035 section 4.2.2).
func (n *Names) serve(c io.ReadWriter) error {
	for {
		var length [2]byte
		if _, err := io.ReadFull(c, length[:]); err != nil {
			return err
		}
		query := make([]byte, binary.BigEndian.Uint16(length[:]))
		if _, err := io.ReadFull(c, query); err != nil {
			return err
		}
		var m dnsmessage.Message
		if err := m.Unpack(query); err != nil {
			return err
		}
		n.answer(&m)
		b, err := m.AppendPack(make([]byte, 2))
		if err != nil {
			return err
		}
		binary.BigEndian.PutUint16(b, uint16(len(b)-2))
		if _, err := c.Write(b); err != nil {
			return err
		}
	}
}

// answer moves on to a name's next answer once the A records have been asked for.
func (n *Names) answer(m *dnsmessage.Message) {
	n.mu.Lock()
	defer n.mu.Unlock()
	m.Response, m.Additionals = true, nil
	q := m.Questions[0]
	name := strings.TrimSuffix(strings.ToLower(q.Name.String()), ".")
	turns := n.answers[name]
	if len(turns) == 0 {
		m.RCode = dnsmessage.RCodeNameError
		return
	}
	for _, s := range turns[0] {
		a := netip.MustParseAddr(s)
		h := dnsmessage.ResourceHeader{Name: q.Name, Type: q.Type, Class: q.Class, TTL: 1}
		switch {
		case a.Is4() && q.Type == dnsmessage.TypeA:
			m.Answers = append(m.Answers, dnsmessage.Resource{Header: h, Body: &dnsmessage.AResource{A: a.As4()}})
		case !a.Is4() && q.Type == dnsmessage.TypeAAAA:
			m.Answers = append(m.Answers, dnsmessage.Resource{Header: h, Body: &dnsmessage.AAAAResource{AAAA: a.As16()}})
		}
	}
	if q.Type == dnsmessage.TypeA && len(turns) > 1 {
		n.answers[name] = turns[1:]
	}
}
