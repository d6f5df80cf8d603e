package main

import (
	"context"
	"net"

	"golang.org/x/time/rate"
)

// pace limits the bytes that connections send, in all and each.
type pace struct {
	all  *rate.Limiter // nil: no limit
	each int           // bytes a second; 0: no limit
}

func newPace(all, each int) pace {
	return pace{all: limiter(all), each: each}
}

const (
	// paceChunk is the largest write.
	paceChunk = 64 << 10
	// paceSlack is the burst, as a part of a second: a late timer must not make the line slower.
	paceSlack = 50
)

func limiter(bytesPerSecond int) *rate.Limiter {
	if bytesPerSecond == 0 {
		return nil
	}
	return rate.NewLimiter(rate.Limit(bytesPerSecond), max(paceChunk, bytesPerSecond/paceSlack))
}

// listener is a listener for upstreamtest.Options.
func (p pace) listener(l net.Listener) net.Listener {
	if p.all == nil && p.each == 0 {
		return l
	}
	return pacedListener{l, p}
}

type pacedListener struct {
	net.Listener
	pace pace
}

func (l pacedListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return pacedConn{c, l.pace.all, limiter(l.pace.each)}, nil
}

type pacedConn struct {
	net.Conn
	all, each *rate.Limiter
}

func (c pacedConn) Write(p []byte) (int, error) {
	written := 0
	for written < len(p) {
		piece := p[written:min(len(p), written+paceChunk)]
		for _, l := range []*rate.Limiter{c.each, c.all} {
			if l == nil {
				continue
			}
			// A piece is never larger than the burst, and the context never ends.
			if err := l.WaitN(context.Background(), len(piece)); err != nil {
				return written, err
			}
		}
		n, err := c.Conn.Write(piece)
		written += n
		if err != nil {
			return written, err
		}
	}
	return written, nil
}
