package server

import (
	"bufio"
	"io"
	"net/http"
	"strings"
	"testing"
)

// TestHead: the number of lines in a head is bounded, however the reads split it. Lines
// after the head do not count.
func TestHead(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		text string
		want bool
	}{
		"few":           {"GET / HTTP/1.1\r\n" + strings.Repeat("a:b\r\n", maxHeadLines-2) + "\r\n", false},
		"one more":      {"GET / HTTP/1.1\r\n" + strings.Repeat("a:b\r\n", maxHeadLines-1) + "\r\n", true},
		"many, bare LF": {"GET / HTTP/1.1\n" + strings.Repeat("a:\n", maxHeadLines), true},
		"a body":        {"POST / HTTP/1.1\r\nContent-Length: 1000\r\n\r\n" + strings.Repeat("\n", 1000), false},
		"empty lines":   {strings.Repeat("\r\n", maxHeadLines+1), true},
		"one line":      {strings.Repeat("a", 1<<20), false},
	} {
		for _, step := range []int{1, 2, 3, 4096, 1 << 20} {
			var h head
			exceeds := false
			for rest := tt.text; rest != "" && !exceeds; {
				n := min(step, len(rest))
				exceeds = h.exceeds([]byte(rest[:n]))
				rest = rest[n:]
			}
			if exceeds != tt.want {
				t.Errorf("%s, %d bytes at a time: %v", name, step, exceeds)
			}
		}
	}
}

// TestHead_TooManyLines: a head with too many lines is refused; each head of a connection counts alone.
func TestHead_TooManyLines(t *testing.T) {
	t.Parallel()
	for name, secure := range map[string]bool{"plain": false, "TLS": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := startServer(t, 10, secure, func(http.ResponseWriter, *http.Request) {})
			c := l.ask(t, "/")
			answers := bufio.NewReader(c)
			for _, want := range []int{http.StatusOK, http.StatusOK, http.StatusRequestHeaderFieldsTooLarge} {
				resp, err := http.ReadResponse(answers, nil)
				if err != nil {
					t.Fatal(err)
				}
				if _, err := io.Copy(io.Discard, resp.Body); err != nil || resp.StatusCode != want {
					t.Fatalf("%s, %v; want %d", resp.Status, err, want)
				}
				resp.Body.Close()
				fields := maxHeadLines / 2
				if want == http.StatusOK && l.served.Load() == 2 {
					fields = maxHeadLines
				}
				_, _ = io.WriteString(c, "GET / HTTP/1.1\r\nHost: x\r\n"+strings.Repeat("a:b\r\n", fields)+"\r\n") // the last request is not read
			}
			if n := l.served.Load(); n != 2 {
				t.Errorf("%d requests were served", n)
			}
		})
	}
}
