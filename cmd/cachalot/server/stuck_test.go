package server

import (
	"io"
	"log/slog"
	"net/http"
	"testing"
	"time"
)

// endless is the body of an endless response.
type endless struct{}

func (endless) Read(p []byte) (int, error) { return len(p), nil }

// send writes until the client is gone.
func send(w http.ResponseWriter) {
	w.Header().Set("Content-Length", "1000000000000") // a blob has a length, so TLS sends it in bulk
	_, _ = io.Copy(w, endless{})
}

// TestStuckClients: a client that reads nothing is cut off after the limit. A slow client
// is not, nor one whose response is late.
func TestStuckClients(t *testing.T) {
	t.Parallel()
	for name, secure := range map[string]bool{"plain": false, "TLS": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ended, release := make(chan struct{}), make(chan struct{})
			l := startServer(t, 10, secure, func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path == "/waits" {
					<-release
					return
				}
				send(w)
				if r.URL.Path == "/stuck" {
					close(ended)
				}
			})
			s := newStuckClients(time.Minute, l.atWork, slog.New(slog.DiscardHandler))
			stuck, slow, waits := l.ask(t, "/stuck"), l.ask(t, "/slow"), l.ask(t, "/waits")
			now := time.Now()
			for cut, looks := false, 0; !cut; now = now.Add(time.Minute) { // its buffers fill first
				if looks++; looks > 1000 {
					t.Fatal("a client that takes nothing is not cut off")
				}
				if _, err := io.CopyN(io.Discard, slow, 16<<20); err != nil {
					t.Fatal("a slow client: ", err)
				}
				s.look(now)
				select {
				case <-ended:
					cut = true
				default:
				}
			}
			if _, err := io.Copy(io.Discard, stuck); err == nil {
				t.Error("the answer ended as if it were whole")
			}
			if _, err := io.CopyN(io.Discard, slow, 16<<20); err != nil {
				t.Error("a slow client: ", err)
			}
			close(release)
			answered(t, waits)
		})
	}
}

// TestSendTimeout_Off: without a limit no client is cut off.
func TestSendTimeout_Off(t *testing.T) {
	t.Parallel()
	ended := make(chan struct{})
	l := startServer(t, 10, false, func(w http.ResponseWriter, _ *http.Request) {
		defer close(ended)
		send(w)
	})
	s := newStuckClients(0, l.atWork, slog.New(slog.DiscardHandler))
	c := l.ask(t, "/")
	if _, err := io.CopyN(io.Discard, c, 1<<20); err != nil {
		t.Fatal(err)
	}
	for i := range 10 {
		s.look(time.Now().Add(time.Duration(i) * time.Hour))
	}
	if _, err := io.CopyN(io.Discard, c, 16<<20); err != nil {
		t.Error(err)
	}
	c.Close()
	<-ended
}
