package process

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cachalot-registry/cachalot/test/cachalotd"
	"github.com/cachalot-registry/cachalot/upstream/upstreamtest"
)

// TestSlowReaders: 399 clients (CACHALOT_TEST_READERS) read nothing, or 8 KiB a second, of
// a stored blob and of one in download. Another client is served as usual, each slow one
// takes bounded memory, and nothing is left when they leave (I6). Clients that read nothing
// are cut off after send_timeout. Each takes 0.2 MB of kernel memory: 24 GB allow 10,000.
func TestSlowReaders(t *testing.T) {
	t.Parallel()
	slowReaders := count(t, "CACHALOT_TEST_READERS", 399)
	raiseDescriptors(t, uint64(slowReaders+5_000))
	up := upstreamtest.New(t, upstreamtest.Options{})
	warm := upstreamtest.NewContent("", upstreamtest.Random(1, 16<<20))
	cold := upstreamtest.NewContent("", upstreamtest.Random(2, 16<<20))
	up.AddBlob("library/app", warm, cold)
	release := make(chan struct{})
	up.Fault(upstreamtest.Match{Op: upstreamtest.GetBlob, Reference: cold.Digest.String()}, upstreamtest.StallAfter(len(cold.Bytes)/2, release))
	// Behind a load balancer they are many clients: one gets at most three quarters.
	config := fmt.Sprintf("max_connections: %d\ntrusted_proxies: [127.0.0.1]\ntimeouts: {progress: 1h}\nstorage: {path: %s, min_free: 0}\nupstreams: {docker.io: {url: %s}}\n", slowReaders+1, t.TempDir(), up.URL)
	s := startConfig(t, "send_timeout: 1h\n"+config, "sh", "-c", fmt.Sprintf(`ulimit -n %d; exec "$@"`, 2*slowReaders+5_000), "sh")
	quick := &http.Client{Transport: &http.Transport{MaxConnsPerHost: 1}}
	if err := s.fetch(quick, warm.Digest); err != nil {
		t.Fatal(err)
	}
	quick.CloseIdleConnections()
	before := s.quiet(t, nil)

	var stuck, slow []net.Conn
	for i := range slowReaders {
		blob := warm
		if i%2 == 1 {
			blob = cold
		}
		c := s.slowClient(t, "/v2/library/app/blobs/"+blob.Digest.String())
		if i%10 < 8 {
			stuck = append(stuck, c)
		} else {
			slow = append(slow, c)
		}
	}
	reading := make(chan struct{})
	stop := make(chan struct{})
	go func() {
		defer close(reading)
		tick := time.NewTicker(250 * time.Millisecond)
		defer tick.Stop()
		for buf := make([]byte, 2<<10); ; {
			for _, c := range slow {
				_ = c.SetReadDeadline(time.Now().Add(time.Second))
				_, _ = c.Read(buf)
			}
			select {
			case <-stop:
				return
			case <-tick.C:
			}
		}
	}()
	s.awaitMetric(t, "cachalot_connections", float64(slowReaders))
	start := time.Now()
	if err := s.fetch(quick, warm.Digest); err != nil {
		t.Error("the quick client: ", err)
	}
	t.Logf("warm, %v", time.Since(start))
	close(release)
	start = time.Now()
	if err := s.fetch(quick, cold.Digest); err != nil {
		t.Error("the quick client: ", err)
	}
	t.Logf("cold, %v", time.Since(start))
	s.awaitMetric(t, "cachalot_fills_in_progress", 0)
	during := s.usage(t)
	heap, rss := (during.heap-before.heap)/slowReaders, (during.rss-before.rss)/slowReaders
	if heap > 52<<10 || rss > 72<<10 {
		t.Errorf("%d bytes of memory each, %d of heap", rss, heap)
	}
	t.Logf("%d slow readers: %d bytes of memory each, %d of heap; before: %v; during: %v", slowReaders, rss, heap, before, during)
	if up.Sent(cold.Digest) != cold.Size || up.Sent(warm.Digest) != warm.Size {
		t.Errorf("%d and %d bytes fetched", up.Sent(warm.Digest), up.Sent(cold.Digest))
	}

	// A client that reads nothing is cut off; one that reads a little stays.
	if err := os.WriteFile(s.Config, []byte(cachalotd.Addresses+"send_timeout: 8s\n"+config), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(s.Cmd.Process.Pid, syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	quick.CloseIdleConnections()
	start = time.Now()
	s.awaitMetric(t, "cachalot_connections", float64(len(slow)))
	t.Logf("cut off after %v", time.Since(start))
	close(stop)
	<-reading
	for _, c := range append(stuck, slow...) {
		_ = c.Close()
	}
	after := s.quiet(t, &before)
	if after.files > before.files || after.heap > before.heap+24<<20 {
		t.Errorf("before %v, after %v\n%s", before, after, s.Get(t, "/debug/pprof/goroutine?debug=1"))
	}
	t.Logf("after: %v", after)
	s.Interrupt(t)
}

// slowClient sends a request as from another host: packets of Ethernet's size and a small
// window. Both reduce the kernel's buffers.
func (s *server) slowClient(t *testing.T, path string) net.Conn {
	t.Helper()
	d := net.Dialer{Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		cerr := c.Control(func(fd uintptr) {
			err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, 8<<10)
			if err == nil {
				err = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_MAXSEG, 1460)
			}
		})
		if cerr != nil {
			return cerr
		}
		return err
	}}
	c, err := d.DialContext(context.Background(), "tcp", strings.TrimPrefix(s.URL, "http://"))
	if err != nil {
		t.Fatalf("%v: %s", err, s.Log)
	}
	t.Cleanup(func() { _ = c.Close() })
	if _, err := c.Write([]byte("GET " + path + " HTTP/1.1\r\nHost: x\r\n\r\n")); err != nil {
		t.Fatal(err)
	}
	return c
}

// awaitMetric waits until a metric has this value.
func (s *server) awaitMetric(t *testing.T, metric string, want float64) {
	t.Helper()
	s.await(t, fmt.Sprintf("%s %v", metric, want), func() bool { return s.Metrics(t)[metric] == want })
}

// raiseDescriptors raises this process' limit of descriptors to n, and that of its children
// to twice as many.
func raiseDescriptors(t *testing.T, n uint64) {
	t.Helper()
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	wanted := unix.Rlimit{Cur: max(n, limit.Cur), Max: max(2*n, limit.Max)}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &wanted); err != nil {
		t.Skipf("%d descriptors are needed, and the limit is %d (ulimit -Hn): %v", 2*n, limit.Max, err)
	}
}
