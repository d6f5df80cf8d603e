package attack

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	ut "github.com/cachalot-registry/cachalot/upstream/upstreamtest"
)

// TestMemory_Tags: hundreds of clients request pages of a list of 100,000 tags.
func TestMemory_Tags(t *testing.T) {
	s := lay(t, "")
	tags := make([]string, 100_000)
	for i := range tags {
		tags[i] = fmt.Sprintf("tag-of-some-length-%06d", i)
	}
	s.hub.AddManifest("library/many", s.image.Manifest, tags...)
	for kept := false; !kept; { // the test's registry may be slow
		resp, err := http.Get(s.URL + "/v2/library/many/tags/list") //nolint:noctx // loopback
		if err != nil {
			t.Fatal(err)
		}
		_, err = io.Copy(io.Discard, resp.Body)
		_ = resp.Body.Close()
		kept = err == nil && resp.StatusCode == http.StatusOK
	}
	n := attempts(t, 1000)
	var served, later atomic.Int64
	s.during(func() {
		flood(n, 200, 100, func(i int) {
			query := []string{"?n=1", "", fmt.Sprint("?n=100&last=", tags[i%len(tags)])}[i%3]
			resp, err := http.Get(s.URL + "/v2/library/many/tags/list" + query) //nolint:noctx // loopback
			if err != nil {
				t.Error(err)
				return
			}
			defer resp.Body.Close()
			body, err := io.ReadAll(resp.Body)
			switch {
			case err != nil:
				t.Error(err)
			case resp.StatusCode == http.StatusOK && strings.HasPrefix(string(body), `{"name":"library/many","tags":["tag-`):
				served.Add(1)
			case resp.StatusCode == http.StatusServiceUnavailable && resp.Header.Get("Retry-After") != "":
				later.Add(1)
			default:
				t.Errorf("%s: %s: %.200s", query, resp.Status, body)
			}
		})
	})
	if served.Load() == 0 {
		t.Error("none was served")
	}
	t.Logf("%d of %d lists served, %d told to come back", served.Load(), n, later.Load())
}

// TestMemory_Manifests: hundreds of clients request different manifests of 4 MiB. The
// registry sends no digests.
func TestMemory_Manifests(t *testing.T) {
	s := lay(t, "")
	s.evil.Fault(ut.Match{Op: ut.HeadManifest}, ut.Status(http.StatusMethodNotAllowed))
	s.evil.Fault(ut.Match{Op: ut.GetManifest}, ut.NoDigest())
	n := attempts(t, 120)
	padding := strings.Repeat(" ", 4<<20-200)
	for i := range n {
		m := fmt.Sprintf(`{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","layers":[],"a":%d}%s`, i, padding)
		s.evil.AddManifest("a/b", ut.NewContent("application/vnd.oci.image.manifest.v1+json", []byte(m)), fmt.Sprint("t", i))
	}
	s.elsewhere(func() {
		s.floodRegistry(3*n, func(i int) string { return fmt.Sprintf("/v2/a/b/manifests/t%d", i%n) })
	})
	before := s.hub.Count()
	var served, later, slow, other atomic.Int64
	s.during(func() {
		flood(n, n, asFast, func(i int) {
			resp, err := http.Get(fmt.Sprintf("%s/v2/evil.test/a/b/manifests/t%d", s.URL, i)) //nolint:noctx // loopback
			if err != nil {
				other.Add(1)
				return
			}
			defer resp.Body.Close()
			_, err = io.Copy(io.Discard, resp.Body)
			switch {
			case resp.StatusCode == http.StatusOK && err == nil:
				served.Add(1)
			case resp.StatusCode == http.StatusServiceUnavailable && resp.Header.Get("Retry-After") != "":
				later.Add(1)
			case resp.StatusCode == http.StatusGatewayTimeout || resp.StatusCode == http.StatusBadGateway:
				slow.Add(1) // half a gigabyte: the test's registry may be too slow for some
			default:
				other.Add(1)
				t.Logf("%s, %v", resp.Status, err)
			}
		})
	})
	if served.Load() == 0 || other.Load() > 0 {
		t.Errorf("%d manifests served, %d told to come back, %d neither", served.Load(), later.Load(), other.Load())
	}
	// The small memory cache is replaced each second, except entries in constant use. An
	// honest client pulls several times a second, so its entries are not fetched again.
	if asked := s.hub.Count() - before; asked > 20 {
		t.Errorf("the honest registry was asked %d times for what is kept", asked)
	}
	t.Logf("%d of %d manifests of 4 MiB served, %d told to come back, of %d the registry was too slow", served.Load(), n, later.Load(), slow.Load())
}

// TestMemory_Parsed: lists and manifests of a million empty elements are small on the wire,
// and many times larger when parsed.
func TestMemory_Parsed(t *testing.T) {
	s := lay(t, "")
	const most = 4<<20 - 200
	full := func(begin, element, end string) []byte {
		return []byte(begin + strings.Repeat(element+",", (most-len(begin))/(len(element)+1)) + element + end)
	}
	const index = "application/vnd.oci.image.index.v1+json"
	s.evil.Fault(ut.Match{Op: ut.Tags}, ut.Body("application/json", full(`{"name":"a/b","tags":[`, `""`, `]}`)))
	s.evil.Fault(ut.Match{Op: ut.Referrers}, ut.Body(index, full(`{"schemaVersion":2,"mediaType":"`+index+`","manifests":[`, `0`, `]}`)))
	s.evil.Fault(ut.Match{Op: ut.HeadManifest}, ut.Status(http.StatusMethodNotAllowed))
	for i, manifest := range [][]byte{
		full(`{"schemaVersion":2,"layers":[`, `0`, `]}`), full(`{"schemaVersion":2,"manifests":[`, `{}`, `]}`), full(`{"schemaVersion":1,"signatures":[`, `{}`, `]}`),
	} {
		s.evil.Fault(ut.Match{Op: ut.GetManifest, Reference: fmt.Sprint("t", i)}, ut.Body(index, manifest))
	}
	paths := []string{"manifests/t0", "manifests/t1", "manifests/t2", "tags/list", "tags/list?n=1", "referrers/" + s.secret.Digest.String(), "referrers/" + s.secret.Digest.String() + "?artifactType=a/b"}
	n := attempts(t, 210)
	s.elsewhere(func() {
		s.floodRegistry(2*n, func(i int) string { return fmt.Sprintf("/v2/a%d/b/%s", i/len(paths), paths[i%len(paths)]) })
	})
	statuses := map[int]int{}
	var mu sync.Mutex // guards statuses
	peak := s.during(func() {
		flood(n, 70, asFast, func(i int) {
			resp, err := http.Get(fmt.Sprintf("%s/v2/evil.test/a%d/b/%s", s.URL, i/len(paths), paths[i%len(paths)])) //nolint:noctx // loopback
			if err != nil {
				t.Error(err)
				return
			}
			defer resp.Body.Close()
			_, err = io.Copy(io.Discard, resp.Body)
			mu.Lock()
			defer mu.Unlock()
			statuses[resp.StatusCode]++
			if err != nil {
				t.Error(err)
			}
		})
	})
	if peak > limit/2 {
		t.Errorf("%d MiB of memory for bodies of 4 MiB, of which a registry may have a few", peak>>20)
	}
	t.Logf("answers to %d requests: %v", n, statuses)
}

// TestMemory_Headers: thousands of connections send incomplete headers of the largest size,
// with as many fields as fit.
func TestMemory_Headers(t *testing.T) {
	s := lay(t, "")
	n := attempts(t, 3000)
	var header strings.Builder
	header.WriteString("GET /v2/ HTTP/1.1\r\nHost: x\r\n")
	for i := 0; header.Len() < 15<<10; i++ {
		_, _ = fmt.Fprintf(&header, "%x:\r\n", i)
	}
	var mu sync.Mutex // guards open
	var open []net.Conn
	var refused atomic.Int64
	s.during(func() {
		flood(n, 32, 450, func(i int) {
			d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 1, byte(i%100))}, Timeout: 10 * time.Second}
			c, err := d.DialContext(t.Context(), "tcp", s.URL[len("http://"):])
			if err != nil {
				refused.Add(1)
				return
			}
			if _, err := c.Write([]byte(header.String())); err != nil {
				refused.Add(1)
			}
			mu.Lock()
			defer mu.Unlock()
			open = append(open, c)
		})
	})
	for _, c := range open {
		_ = c.Close()
	}
	t.Logf("%d connections with headers of 15 KiB in thousands of fields, %d of them refused", n, refused.Load())
}
