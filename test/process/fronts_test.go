package process

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/cachalot-registry/cachalot/upstream/upstreamtest"
)

// TestFronts: behind nginx, which uses HTTP/1.0 to its backend, and HAProxy, a cut or wrong
// body never looks complete to an HTTP/1.1 or 1.0 client. A right body does (I1).
func TestFronts(t *testing.T) {
	t.Parallel()
	up := upstreamtest.New(t, upstreamtest.Options{})
	cases := map[string][]upstreamtest.Fault{
		"right":                      nil,
		"right, without a length":    {upstreamtest.NoLength()},
		"flipped":                    {upstreamtest.WrongBytes()},
		"flipped, without a length":  {upstreamtest.NoLength(), upstreamtest.WrongBytes()},
		"cut":                        {upstreamtest.CutAfter(10_000)},
		"cut, without a length":      {upstreamtest.NoLength(), upstreamtest.CutAfter(10_000)},
		"too short, without any end": {upstreamtest.OpenEnd(), upstreamtest.CutAfter(10_000)},
	}
	s := start(t, t.TempDir(), up.URL)
	mirror := strings.TrimPrefix(s.URL, "http://")
	var blobs atomic.Uint64
	for name, front := range map[string]func(t *testing.T, dir, address, mirror string) *exec.Cmd{"nginx": nginx, "haproxy": haproxy, "none": nil} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			address := mirror
			if front != nil {
				address = startFront(t, front, mirror)
			}
			var asking sync.WaitGroup // each waits, for some seconds if a body is cut
			for what, faults := range cases {
				for _, protocol := range []string{"HTTP/1.1", "HTTP/1.0"} {
					blob := upstreamtest.NewContent("", upstreamtest.Random(blobs.Add(1), 300_000))
					up.AddBlob("library/app", blob)
					if faults != nil {
						up.Fault(upstreamtest.Match{Op: upstreamtest.GetBlob, Reference: blob.Digest.String()}, faults...)
					}
					asking.Go(func() {
						for range 2 {
							body, whole := ask(t, address, protocol, "/v2/library/app/blobs/"+blob.Digest.String())
							if whole && !bytes.Equal(body, blob.Bytes) {
								t.Errorf("%s, %s: %d bytes that look whole, and are not", what, protocol, len(body))
							}
							if !whole && strings.HasPrefix(what, "right") {
								t.Errorf("%s, %s: it does not come: %.200q", what, protocol, body)
							}
						}
					})
				}
			}
			asking.Wait()
		})
	}
}

// ask returns a body, and whether it looks complete to a client of the protocol.
func ask(t *testing.T, address, protocol, path string) (body []byte, whole bool) {
	t.Helper()
	c, err := new(net.Dialer).DialContext(t.Context(), "tcp", address)
	if err != nil {
		t.Error(err)
		return nil, false
	}
	defer c.Close()
	if _, err := fmt.Fprintf(c, "GET %s %s\r\nHost: %s\r\nConnection: close\r\n\r\n", path, protocol, address); err != nil {
		t.Error(err)
		return nil, false
	}
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		return nil, false // it does not look complete
	}
	defer resp.Body.Close()
	body, err = io.ReadAll(resp.Body)
	return body, err == nil && resp.StatusCode == http.StatusOK
}

// startFront starts a proxy in front of the mirror, and returns its address.
func startFront(t *testing.T, front func(t *testing.T, dir, address, mirror string) *exec.Cmd, mirror string) string {
	t.Helper()
	address, dir := upstreamtest.PortFor(t), t.TempDir()
	cmd := front(t, dir, address, mirror)
	said, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = said.Close() }()
	cmd.Stdout, cmd.Stderr = said, said
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = cmd.Wait() // the log has the reason
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM) // it may have ended
		<-ended
	})
	for tick := time.NewTicker(10 * time.Millisecond); ; {
		if c, err := new(net.Dialer).DialContext(t.Context(), "tcp", address); err == nil {
			_ = c.Close()
			return address
		}
		select {
		case <-tick.C:
		case <-ended:
			b, _ := os.ReadFile(said.Name())
			t.Fatalf("%s ended: %s", cmd.Path, b)
		}
	}
}

// program finds a program of Debian's package of that name, or skips the test.
func program(t *testing.T, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Skipf("no %s: apt-get install --no-install-recommends %s", name, name)
	}
	return path
}

// nginx is nginx with Debian's settings as a plain proxy.
func nginx(t *testing.T, dir, address, mirror string) *exec.Cmd {
	t.Helper()
	path := program(t, "nginx")
	user := ""
	if os.Geteuid() == 0 {
		user = "user root;" // else its worker may not read the folder
	}
	file := filepath.Join(dir, "nginx.conf")
	text := fmt.Sprintf(`%[1]s
daemon off;
pid %[2]s/pid;
error_log stderr;
events { worker_connections 768; }
http {
	sendfile on;
	tcp_nopush on;
	access_log off;
	gzip on;
	client_body_temp_path %[2]s/body;
	proxy_temp_path %[2]s/proxy;
	fastcgi_temp_path %[2]s/fastcgi;
	uwsgi_temp_path %[2]s/uwsgi;
	scgi_temp_path %[2]s/scgi;
	server {
		listen %[3]s;
		location / { proxy_pass http://%[4]s; }
	}
}
`, user, dir, address, mirror)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return exec.Command(path, "-p", dir, "-e", "stderr", "-c", file) //nolint:noctx // ended by the test
}

func haproxy(t *testing.T, dir, address, mirror string) *exec.Cmd {
	t.Helper()
	path := program(t, "haproxy")
	file := filepath.Join(dir, "haproxy.cfg")
	text := fmt.Sprintf(`global
	maxconn 256
defaults
	mode http
	timeout connect 5s
	timeout client 50s
	timeout server 50s
frontend front
	bind %s
	default_backend mirror
backend mirror
	server mirror %s
`, address, mirror)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return exec.Command(path, "-db", "-f", file) //nolint:noctx // ended by the test
}
