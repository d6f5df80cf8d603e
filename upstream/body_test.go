package upstream

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cachalot-registry/cachalot/upstream/upstreamtest"
)

// TestTrickle: a body that arrives too slowly is a timeout. A slow but sufficient link is not,
// and a slow reader is not.
func TestTrickle(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name  string
		piece int           // bytes
		every time.Duration // between pieces, upstream
		read  time.Duration // between reads
		size  int
		most  time.Duration // until it fails; 0: it does not
	}{
		{name: "a byte a second", piece: 1, every: time.Second, size: 100_000, most: 31 * time.Second},
		{name: "500 bytes a second", piece: 500, every: time.Second, size: 100_000, most: 31 * time.Second},
		{name: "it begins well", piece: 100_000, every: 29 * time.Second, size: 1_000_000},
		{name: "600 bytes a second", piece: 600, every: time.Second, size: 100_000},
		{name: "a slow reader", piece: 100_000, read: time.Hour, size: 100_000},
		{name: "a slow reader of a slow link", piece: 600, every: time.Second, read: 29 * time.Minute, size: 30_000},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				r := served(t, func(w http.ResponseWriter, req *http.Request) {
					body := strings.Repeat("x", tt.size)
					for len(body) > 0 {
						n := min(tt.piece, len(body))
						if _, err := io.WriteString(w, body[:n]); err != nil {
							return
						}
						_ = http.NewResponseController(w).Flush() // a client that left is noticed above
						body = body[n:]
						select {
						case <-time.After(tt.every):
						case <-req.Context().Done():
						}
					}
				})
				c, err := r.Open(t.Context(), KindBlob, repo, blobDigest, Span{})
				if err != nil {
					t.Fatal(err)
				}
				defer c.Body.Close()
				start, got := time.Now(), 0
				buf := make([]byte, 8<<10)
				for err == nil {
					var n int
					n, err = c.Body.Read(buf)
					got += n
					if err == nil {
						time.Sleep(tt.read)
					}
				}
				took := time.Since(start)
				switch {
				case tt.most == 0 && (!errors.Is(err, io.EOF) || got != tt.size):
					t.Errorf("%d bytes, %v after %s", got, err, took)
				case tt.most > 0 && (!errors.Is(err, ErrTimeout) || !strings.Contains(err.Error(), "16384 bytes") || took > tt.most):
					t.Errorf("%d bytes, %v after %s", got, err, took)
				}
				if _, again := c.Body.Read(buf); tt.most > 0 && !errors.Is(again, ErrTimeout) {
					t.Errorf("read again: %v", again)
				}
			})
		})
	}
}

// TestSlowURL: if a body from one URL is too slow or stops, it is resumed from the next URL,
// which is then asked first for a while.
func TestSlowURL(t *testing.T) {
	t.Parallel()
	for name, fault := range map[string]upstreamtest.Fault{
		"trickle": upstreamtest.TrickleAfter(1000, 5*time.Millisecond), "silence": upstreamtest.StallAfter(1000, nil),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			mirror, img := image(t, upstreamtest.Options{})
			itself, _ := image(t, upstreamtest.Options{})
			mirror.Fault(upstreamtest.Match{Op: upstreamtest.GetBlob}, fault)
			r := dialing(t, Config{
				URLs:     []string{mirror.URL, itself.URL},
				Timeouts: Timeouts{Dial: never, TLSHandshake: never, ResponseHeader: never, Progress: 250 * time.Millisecond},
			})
			layer := img.Layers[0]
			c, err := r.Open(t.Context(), KindBlob, repo, layer.Digest, Span{})
			if err != nil {
				t.Fatal(err)
			}
			b, err := io.ReadAll(c.Body)
			c.Body.Close()
			if !errors.Is(err, ErrTimeout) || len(b) < 1000 {
				t.Fatalf("%d bytes, %v", len(b), err)
			}
			rest := read(t, r, KindBlob, layer.Digest, int64(len(b)))
			if !bytes.Equal(append(b, rest...), layer.Bytes) {
				t.Error("other bytes")
			}
			head(t, r, repo)
			wantCounts(t, mirror, map[upstreamtest.Op]int{upstreamtest.GetBlob: 1, upstreamtest.Ping: 1})
			wantCounts(t, itself, map[upstreamtest.Op]int{upstreamtest.GetBlob: 1, upstreamtest.HeadManifest: 1, upstreamtest.Ping: 1})
			r.endpoints[0].slowAt.Add(-int64(slowPause)) // as after that time
			head(t, r, repo)
			wantCounts(t, itself, map[upstreamtest.Op]int{upstreamtest.GetBlob: 1, upstreamtest.HeadManifest: 1, upstreamtest.Ping: 1})
		})
	}
}

// TestReset: a TCP reset is a broken connection like any other.
func TestReset(t *testing.T) {
	t.Parallel()
	for name, options := range map[string]upstreamtest.Options{"plain": {}, "TLS": {TLS: true}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			up, img := image(t, options)
			layer := img.Layers[0]
			up.Fault(upstreamtest.Match{Op: upstreamtest.GetBlob, Times: 1}, upstreamtest.ResetAfter(50_000))
			r := dialing(t, Config{URLs: []string{up.URL}, CAFile: up.CAFile})
			c, err := r.Open(t.Context(), KindBlob, repo, layer.Digest, Span{})
			if err != nil {
				t.Fatal(err)
			}
			b, err := io.ReadAll(c.Body)
			c.Body.Close()
			if !errors.Is(err, syscall.ECONNRESET) || !errors.Is(err, ErrUnavailable) || len(b) > 50_000 {
				t.Errorf("%d bytes, %v", len(b), err)
			}
			rest := read(t, r, KindBlob, layer.Digest, int64(len(b)))
			if !bytes.Equal(append(b, rest...), layer.Bytes) {
				t.Error("other bytes")
			}
		})
	}
}
