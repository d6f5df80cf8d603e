package upstreamtest

import (
	"bytes"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"testing"

	"github.com/opencontainers/go-digest"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// TestImage: the same arguments always make the same bytes.
func TestImage(t *testing.T) {
	t.Parallel()
	one, two := NewImage(7, 10, 0, 100), NewImage(7, 10, 0, 100)
	if one.Index.Digest != two.Index.Digest || !bytes.Equal(one.Layers[2].Bytes, two.Layers[2].Bytes) {
		t.Error("not reproducible")
	}
	if other := NewImage(8, 10, 0, 100); other.Layers[0].Digest == one.Layers[0].Digest || other.Config.Digest == one.Config.Digest {
		t.Error("another seed, the same bytes")
	}
	if d := NewImageBy(digest.SHA512, 7, 10).Index.Digest; d.Algorithm() != digest.SHA512 {
		t.Errorf("digest %s", d)
	}
}

func get(t *testing.T, url string) (int, []byte, error) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Do(req)
	if err != nil {
		return 0, nil, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return resp.StatusCode, b, err
}

// TestCounts: requests and bytes are counted exactly, and before the client sees them.
func TestCounts(t *testing.T) {
	t.Parallel()
	r := New(t, Options{CDN: true})
	img := r.AddImage("a/b", "latest", NewImage(1, 200_000))
	layer := img.Layers[0]
	url := r.URL + "/v2/a/b/blobs/" + layer.Digest.String()
	for i := range 3 {
		status, b, err := get(t, url)
		if err != nil || status != 200 || !bytes.Equal(b, layer.Bytes) {
			t.Fatalf("status %d, %d bytes, %v", status, len(b), err)
		}
		if got, want := r.Sent(layer.Digest), int64(i+1)*layer.Size; got != want {
			t.Fatalf("%d bytes sent, want %d", got, want)
		}
		if r.Count(GetBlob) != i+1 || r.Count(CDN) != i+1 || r.Count() != 2*(i+1) {
			t.Fatalf("counts %v", r.Counts())
		}
	}
	if _, sent := r.Wire(); sent <= 3*layer.Size || sent > 3*layer.Size+4096 {
		t.Errorf("%d bytes on the wire", sent)
	}
	r.Forget()
	r.ExpireCDN()
	s := r.Fault(Match{Op: GetBlob, Times: 1}, Status(503))
	if status, _, err := get(t, url); status != 503 || err != nil || r.SentAll() != 0 || s.Applied() != 1 {
		t.Errorf("status %d, %v, %d bytes, applied %d", status, err, r.SentAll(), s.Applied())
	}
	r.Fault(Match{Op: CDN}, CutAfter(1000))
	if _, b, err := get(t, url); err == nil || len(b) != 1000 || r.Sent(layer.Digest) != 1000 {
		t.Errorf("%d bytes, %v, %d counted", len(b), err, r.Sent(layer.Digest))
	}
}

func TestDownAndUp(t *testing.T) {
	t.Parallel()
	r := New(t, Options{})
	other := New(t, Options{})
	r.Down()
	r.Down()
	if _, _, err := get(t, r.URL+"/v2/"); err == nil {
		t.Error("it is down, and answers")
	}
	if status, _, err := get(t, other.URL+"/v2/"); status != 200 || err != nil {
		t.Errorf("another one: status %d, %v", status, err)
	}
	r.Up()
	if status, _, err := get(t, r.URL+"/v2/"); status != 200 || err != nil {
		t.Errorf("status %d, %v", status, err)
	}
}

// TestRelay: a relay counts the same as the registry behind it, and a push arrives complete.
func TestRelay(t *testing.T) {
	t.Parallel()
	r := New(t, Options{})
	img := r.AddImage("a/b", "latest", NewImage(1, 200_000))
	layer := img.Layers[0]
	relay := NewRelay(t, r.URL)
	for _, path := range []string{"/v2/a/b/blobs/" + layer.Digest.String(), "/v2/a/b/manifests/latest", "/v2/a/b/blobs/" + digest.FromString("none").String()} {
		if _, _, err := get(t, relay.URL+path); err != nil {
			t.Fatal(err)
		}
	}
	if got, want := relay.Sent(layer.Digest), r.Sent(layer.Digest); got != want || got != layer.Size {
		t.Errorf("%d bytes of the layer, and the registry has sent %d of %d", got, want, layer.Size)
	}
	if got, want := relay.SentAll(), r.SentAll(); got != want {
		t.Errorf("%d bytes of content, and the registry has sent %d", got, want)
	}
	if got := relay.Requests()[2]; got.Op != GetBlob || got.Status != http.StatusNotFound {
		t.Errorf("what the registry has not: %+v", got)
	}

	var pushed []byte
	sink := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, req *http.Request) {
		pushed, _ = io.ReadAll(req.Body) // what is missing shows below
	}))
	defer sink.Close()
	relay = NewRelay(t, sink.URL)
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPut, relay.URL+"/v2/a/b/blobs/uploads/1?digest="+layer.Digest.String(), bytes.NewReader(layer.Bytes))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if got := relay.Requests()[0]; !bytes.Equal(pushed, layer.Bytes) || got.Op != Other || got.Query.Get("digest") != layer.Digest.String() || got.Status != http.StatusOK {
		t.Errorf("%d bytes pushed, recorded as %+v", len(pushed), got)
	}
	relay.Down()
	if _, _, err := get(t, relay.URL+"/v2/"); err == nil {
		t.Error("it is down, and answers")
	}
}

// TestHoldPort: a held port refuses connections, and no other program gets it except the server
// that asks for it.
func TestHoldPort(t *testing.T) {
	t.Parallel()
	address := PortFor(t)
	dial := func() error {
		c, err := new(net.Dialer).DialContext(t.Context(), "tcp", address)
		if err != nil {
			return err
		}
		return c.Close()
	}
	if err := dial(); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("it connects: %v", err)
	}
	for range 3 {
		l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		if err := dial(); err != nil {
			t.Error(err)
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	}
	// A bind without SO_REUSEADDR conflicts, as does one that asks for any port.
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	to := netip.MustParseAddrPort(address)
	if err := unix.Bind(fd, &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()}); !errors.Is(err, unix.EADDRINUSE) {
		t.Errorf("another one is given the port: %v", err)
	}
}
