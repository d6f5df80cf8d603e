package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/cachalot-registry/cachalot/upstream/upstreamtest"
)

// serve is a server that counts its requests.
func serve(t *testing.T, secure bool, body []byte) (url string, requests *atomic.Int64) {
	t.Helper()
	requests = new(atomic.Int64)
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		requests.Add(1)
		if r.Method != http.MethodGet || r.URL.Path != "/v2/x" || r.Header.Get("Accept") != "a/b" {
			t.Errorf("%s %s %v", r.Method, r.URL, r.Header)
		}
		w.Header().Set("Content-Length", fmt.Sprint(len(body)))
		_, _ = w.Write(body)
	})
	s := httptest.NewUnstartedServer(h)
	if secure {
		s.StartTLS()
	} else {
		s.Start()
	}
	t.Cleanup(s.Close)
	return s.URL, requests
}

func TestLoadCounts(t *testing.T) {
	t.Parallel()
	for _, secure := range []bool{false, true} {
		for _, size := range []int{0, 1, 5000, 3<<20 + 7} {
			t.Run(fmt.Sprint(secure, size), func(t *testing.T) {
				t.Parallel()
				url, requests := serve(t, secure, upstreamtest.Random(1, size))
				r, err := parseRequest(url, "/v2/x", "a/b", int64(size))
				if err != nil {
					t.Fatal(err)
				}
				got, err := load(t.Context(), os.Getpid(), 3, 20, r)
				if err != nil {
					t.Fatal(err)
				}
				if got.requests != 20 || requests.Load() != 20 || got.bytes != 20*int64(size) {
					t.Errorf("%d requests, %d bytes; the server saw %d of %d bytes each", got.requests, got.bytes, requests.Load(), size)
				}
				if got.wall <= 0 || (got.cipher != "") != secure {
					t.Errorf("got %+v", got)
				}
			})
		}
	}
}

// A response that is not the content ends the measurement with an error.
func TestLoadRefuses(t *testing.T) {
	t.Parallel()
	for answer, want := range map[string]string{
		"HTTP/1.1 404 Not Found\r\nContent-Length: 5\r\n\r\nhello":             `the answer is "HTTP/1.1 404 Not Found"`,
		"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nhell":                     "the answer has 4 bytes, the content has 5",
		"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhell":                     "the connection ended in the middle",
		"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello!":                   "longer than it says",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n":  "no Content-Length",
		"HTTP/1.1 200 OK\r\nX: " + strings.Repeat("x", maxHeader) + "\r\n\r\n": "the header of an answer is longer",
		"HTTP/1.1 200 OK\r\nContent-Len":                                       io.EOF.Error(),
	} {
		t.Run(want, func(t *testing.T) {
			t.Parallel()
			var lc net.ListenConfig
			l, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			done := make(chan error, 1)
			go func() {
				c, err := l.Accept()
				if err == nil {
					_, err = bufio.NewReader(c).ReadString('\n')
					_, _ = io.WriteString(c, answer)
					_ = c.(*net.TCPConn).CloseWrite()
					_, _ = io.Copy(io.Discard, c) // until the client closes the connection
					_ = c.Close()
				}
				done <- err
			}()
			r, err := parseRequest("http://"+l.Addr().String(), "/v2/x", "a/b", 5)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := load(t.Context(), os.Getpid(), 1, 1, r); err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("got %v, want %q", err, want)
			}
			_ = l.Close()
			if err := <-done; err != nil && !errors.Is(err, net.ErrClosed) {
				t.Error(err)
			}
		})
	}
}
