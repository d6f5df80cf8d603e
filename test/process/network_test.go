package process

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cachalot-registry/cachalot/upstream/upstreamtest"
)

// cable is a network of this host and a namespace with one cable between them.
type cable struct {
	t         *testing.T
	namespace string
	plug      string // the interface in the namespace
	there     string // the namespace's address
}

func newCable(t *testing.T) *cable {
	t.Helper()
	id := os.Getpid()
	c := &cable{t: t, namespace: fmt.Sprint("cachalot-", id), plug: fmt.Sprint("cp", id)}
	net := fmt.Sprintf("10.%d.%d.", 200+id%50, id/50%250)
	c.there = net + "2"
	here := fmt.Sprint("ch", id)
	if out, err := exec.CommandContext(t.Context(), "ip", "netns", "add", c.namespace).CombinedOutput(); err != nil {
		t.Skipf("a cable needs root, and ip netns: %v %s", err, out)
	}
	t.Cleanup(func() { // its contents are removed later
		if out, err := exec.Command("ip", "netns", "del", c.namespace).CombinedOutput(); err != nil { //nolint:noctx // the test's context has ended
			t.Errorf("remove the namespace: %v %s", err, out)
		}
	})
	if out, err := exec.CommandContext(t.Context(), "ip", "link", "add", here, "type", "veth", "peer", "name", c.plug, "netns", c.namespace).CombinedOutput(); err != nil {
		t.Skipf("a cable needs a pair of veth interfaces: %v %s", err, out)
	}
	t.Cleanup(func() { _ = exec.Command("ip", "link", "del", here).Run() }) //nolint:noctx // likewise
	c.ip("addr", "add", net+"1/30", "dev", here)
	c.ip("link", "set", here, "up")
	c.ip("-n", c.namespace, "addr", "add", c.there+"/30", "dev", c.plug)
	c.connect()
	return c
}

func (c *cable) ip(args ...string) {
	c.t.Helper()
	if out, err := exec.CommandContext(c.t.Context(), "ip", args...).CombinedOutput(); err != nil {
		c.t.Fatalf("ip %v: %v %s", args, err, out)
	}
}

func (c *cable) connect() { c.ip("-n", c.namespace, "link", "set", c.plug, "up") }
func (c *cable) cut()     { c.ip("-n", c.namespace, "link", "set", c.plug, "down") }

// registry starts a registry in the namespace. A socket belongs to the namespace of the
// thread that opens it.
func (c *cable) registry() *upstreamtest.Registry {
	c.t.Helper()
	var up *upstreamtest.Registry
	entered := make(chan error, 1)
	go func() {
		defer close(entered)
		runtime.LockOSThread() // not unlocked: the thread ends with the goroutine
		f, err := os.Open("/run/netns/" + c.namespace)
		if err == nil {
			defer f.Close()
			err = unix.Setns(int(f.Fd()), unix.CLONE_NEWNET)
		}
		if err != nil {
			entered <- err
			return
		}
		up = upstreamtest.New(c.t, upstreamtest.Options{Address: net.JoinHostPort(c.there, "0")})
	}()
	if err := <-entered; err != nil || up == nil {
		c.t.Fatal("enter the namespace: ", err)
	}
	return up
}

// TestNetworkCut unplugs the registry's cable in the middle of a blob, and plugs it in
// again. The client sees a pause, and no byte is fetched twice. Bytes in flight on an
// abandoned connection are lost.
func TestNetworkCut(t *testing.T) {
	t.Parallel()
	c := newCable(t)
	for i, tc := range []struct {
		name, config string
		wait         func(s *server) // how long the cable is out
		gets         int             // plus one if TCP is slow to continue: its wait doubles each time
	}{
		// TCP continues by itself.
		{"short", "", func(*server) { <-time.After(time.Second) }, 1},
		// The connection is abandoned after the cable is unplugged, and so is at least one new one.
		{"long", "timeouts: {progress: 3s, dial: 500ms}", func(s *server) {
			tick := time.NewTicker(10 * time.Millisecond)
			defer tick.Stop()
			for log := ""; strings.Count(log, "download broke; resuming") < 2; log = s.Log.String() {
				if strings.Contains(log, "msg=request") {
					t.Errorf("the download ended with the cable out: %s", log)
					return
				}
				<-tick.C
			}
		}, 2},
	} {
		up := c.registry()
		blob := upstreamtest.NewContent("", upstreamtest.Random(uint64(20+i), 8<<20))
		up.AddBlob("library/app", blob)
		release := make(chan struct{})
		half := blob.Size / 2
		up.Fault(upstreamtest.Match{Op: upstreamtest.GetBlob, Times: 1}, upstreamtest.StallAfter(int(half), release))
		s := startConfig(t, basicConfig(t.TempDir(), up.URL)+tc.config, "env", "NO_PROXY=*")
		resp, err := http.Get(s.URL + "/v2/library/app/blobs/" + blob.Digest.String()) //nolint:noctx // ends with the server
		if err != nil {
			t.Fatal(err)
		}
		got := make([]byte, half)
		if _, err := io.ReadFull(resp.Body, got); err != nil {
			t.Fatal(err)
		}
		c.cut()
		if tc.gets == 1 { // the rest is sent while the cable is unplugged
			close(release)
		}
		tc.wait(s)
		c.connect()
		rest, err := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		if err != nil || !bytes.Equal(append(got, rest...), blob.Bytes) {
			t.Errorf("%s: %d bytes, %v: %s", tc.name, len(got)+len(rest), err, s.Log)
		}
		if n := s.Metrics(t)["cachalot_fetched_bytes_total"]; n != float64(blob.Size) {
			t.Errorf("%s: %v bytes fetched, want %d", tc.name, n, blob.Size)
		}
		n, sent := up.Count(upstreamtest.GetBlob), up.Sent(blob.Digest)
		if n < tc.gets || n > tc.gets+1 || sent != blob.Size && n == tc.gets {
			t.Errorf("%s: %d GETs, want %d; %d bytes, want %d", tc.name, n, tc.gets, sent, blob.Size)
		}
		s.Kill()
	}
}
