package main

import (
	"io"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// sink is a connection that accepts every write at once.
type sink struct {
	net.Conn
	got int
}

func (s *sink) Write(p []byte) (int, error) {
	s.got += len(p)
	return len(p), nil
}

// offer accepts a new sink each time.
type offer struct{ net.Listener }

func (offer) Accept() (net.Conn, error) { return &sink{}, nil }

func TestPace(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name             string
		all, each, conns int
		want             time.Duration // for 10 MB on each connection
	}{
		{"no limit", 0, 0, 2, 0},
		{"each", 0, 10e6, 3, 980 * time.Millisecond},
		{"all together", 20e6, 0, 4, 1980 * time.Millisecond},
		{"both, all is what limits", 10e6, 10e6, 2, 1980 * time.Millisecond},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				l := newPace(tt.all, tt.each).listener(offer{})
				begin := time.Now()
				var wg sync.WaitGroup
				for range tt.conns {
					c, err := l.Accept()
					if err != nil {
						t.Fatal(err)
					}
					wg.Go(func() {
						if n, err := io.Copy(c, io.LimitReader(zeros{}, 10e6)); n != 10e6 || err != nil {
							t.Errorf("%d bytes, %v", n, err)
						}
					})
				}
				wg.Wait()
				if took := time.Since(begin); took < tt.want-time.Millisecond || took > tt.want+20*time.Millisecond {
					t.Errorf("it took %v, want %v", took, tt.want)
				}
			})
		})
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { return len(p), nil }
