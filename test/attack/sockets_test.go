package attack

import (
	"fmt"
	"net"
	"net/http"
	"testing"
	"time"
)

// TestSockets: silent, half-open and endlessly busy connections do not block other clients
// of either listener.
func TestSockets(t *testing.T) {
	for name, sends := range map[string]string{
		"nothing":                        "",
		"half a request":                 "GET /v2/ HTTP/1.1\r\nHost: x\r\n",
		"a GET with a body, which waits": "GET /v2/ HTTP/1.1\r\nHost: x\r\nContent-Length: 200000\r\n\r\n",
		"a POST with a body, as slow":    "POST /api/v1/warm HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: 200000\r\n\r\n",
		"requests, and reads no answers": "GET /metrics HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			s := lay(t, "max_connections: 200")
			n := attempts(t, 500)
			var open []net.Conn
			s.during(func() {
				for i := range n {
					for _, listener := range []string{s.URL, s.Admin} {
						d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, byte(20+i%2))}, Timeout: 5 * time.Second}
						c, err := d.DialContext(t.Context(), "tcp", listener[len("http://"):])
						if err != nil {
							continue
						}
						_, _ = c.Write([]byte(sends)) // the server may have closed it
						open = append(open, c)
					}
				}
				s.cold(20, "/v2/library/app/blobs/", s.hub, "library/app")
			})
			for _, c := range open {
				_ = c.Close()
			}
			t.Logf("%d connections to each listener", n)
		})
	}
}

// TestSockets_Host: a web page that resolves its own name to the admin listener (DNS
// rebinding) reads nothing there.
func TestSockets_Host(t *testing.T) {
	s := lay(t, "hosts: [mirror.test]")
	for _, path := range []string{"/metrics", "/debug/pprof/cmdline", "/api/v1/stats"} {
		for host, want := range map[string]bool{"rebound.example": false, "127.0.0.1": true} {
			if got := s.asked(t, s.Admin+path, host); (got == http.StatusOK) != want {
				t.Errorf("%s as %s: %d", path, host, got)
			}
		}
	}
	for host, want := range map[string]bool{"rebound.example": false, "mirror.test": true, "127.0.0.1": true} {
		if got := s.asked(t, s.URL+"/v2/library/kept/manifests/1", host); (got == http.StatusOK) != want {
			t.Errorf("content as %s: %d", host, got)
		}
	}
}

func (s *siege) asked(t *testing.T, url, host string) int {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	req.Host = fmt.Sprint(host)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	return resp.StatusCode
}
