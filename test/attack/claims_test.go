package attack

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	ut "github.com/cachalot-registry/cachalot/upstream/upstreamtest"
)

// TestClaims_Length: a length that a registry announces and does not send evicts only one
// step beyond the bytes that arrive.
func TestClaims_Length(t *testing.T) {
	s := lay(t, "")
	const step = 1 << 20
	lie := ut.NewContent("", ut.Random(5, 100<<20))
	release := make(chan struct{})
	defer close(release)
	s.evil.AddBlob("a/b", lie)
	s.evil.Fault(ut.Match{Op: ut.GetBlob}, ut.StallAfter(1, release))
	var kept []ut.Content
	for i := range 60 {
		kept = append(kept, ut.NewContent("", ut.Random(uint64(4000+i), 2<<20)))
	}
	s.hub.AddBlob("library/large", kept...)
	for _, c := range kept {
		if err := s.get(t.Context(), http.DefaultClient, "/v2/library/large/blobs/"+c.Digest.String(), c); err != nil {
			t.Fatal(err)
		}
	}
	before := s.Metrics(t)["cachalot_evicted_bytes_total"]
	s.during(func() {
		for range 10 {
			ctx, leave := context.WithTimeout(t.Context(), 200*time.Millisecond)
			_ = s.get(ctx, http.DefaultClient, "/v2/evil.test/a/b/blobs/"+lie.Digest.String(), lie) // the body stalls
			leave()
		}
	})
	if gone := s.Metrics(t)["cachalot_evicted_bytes_total"] - before; gone > 3*step {
		t.Errorf("%.0f bytes went for one that came", gone)
	} else {
		t.Logf("%.0f bytes of 120 MiB went for one that came, of 100 MiB that were announced", gone)
	}
}

// TestClaims_Nested: a walk of four levels of indexes with thousands of entries is bounded,
// and ends with its caller.
func TestClaims_Nested(t *testing.T) {
	s := lay(t, "")
	const wide = 2000
	kind := "application/vnd.oci.image.index.v1+json"
	level := []ut.Content{s.image.Index}
	s.hub.AddManifest("library/nested", s.image.Manifest)
	s.hub.AddManifest("library/nested", s.image.Index)
	for range 4 {
		list := ""
		for i := range wide {
			c := level[i%len(level)]
			if i > 0 {
				list += ","
			}
			list += fmt.Sprintf(`{"mediaType":%q,"digest":%q,"size":%d}`, kind, c.Digest, len(c.Bytes))
		}
		m := ut.NewContent(kind, fmt.Appendf(nil, `{"schemaVersion":2,"mediaType":%q,"manifests":[%s]}`, kind, list))
		level = []ut.Content{m}
		s.hub.AddManifest("library/nested", m, "deep")
		if err := s.get(t.Context(), http.DefaultClient, "/v2/library/nested/manifests/"+m.Digest.String(), m); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.get(t.Context(), http.DefaultClient, "/v2/library/nested/manifests/deep", level[0]); err != nil {
		t.Fatal(err)
	}
	n := attempts(t, 20)
	s.during(func() {
		flood(n, 10, asFast, func(int) {
			ctx, leave := context.WithTimeout(t.Context(), 30*time.Second)
			defer leave()
			req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.Admin+"/api/v1/image?name=docker.io/library/nested:deep", http.NoBody)
			if err != nil {
				t.Error(err)
				return
			}
			resp, err := http.DefaultClient.Do(req)
			if err != nil {
				t.Errorf("an image of nested indexes: %v", err)
				return
			}
			_ = resp.Body.Close()
			if resp.StatusCode != http.StatusOK {
				t.Errorf("an image of nested indexes: %s", resp.Status)
			}
		})
	})
	s.Interrupt(t)
}

// TestClaims_Warm: images that name a manifest of 4 MiB 500 times, or dozens of such
// manifests, are warmed within one client's share of memory.
func TestClaims_Warm(t *testing.T) {
	s := lay(t, "")
	const kind, of = "application/vnd.oci.image.index.v1+json", "application/vnd.oci.image.manifest.v1+json"
	padding := strings.Repeat(" ", 4<<20-200)
	entry := func(c ut.Content) string {
		return fmt.Sprintf(`{"mediaType":%q,"digest":%q,"size":%d,"platform":{"os":"linux","architecture":"amd64"}}`, of, c.Digest, c.Size)
	}
	var each []string
	for i := range 30 {
		m := ut.NewContent(of, fmt.Appendf(nil, `{"schemaVersion":2,"mediaType":%q,"layers":[],"a":%d}%s`, of, i, padding))
		s.hub.AddManifest("library/large", m)
		each = append(each, entry(m))
	}
	names := map[string][]string{"same": slices.Repeat(each[:1], 500), "each": each}
	for tag, list := range names {
		index := fmt.Appendf(nil, `{"schemaVersion":2,"mediaType":%q,"manifests":[%s]}`, kind, strings.Join(list, ","))
		s.hub.AddManifest("library/large", ut.NewContent(kind, index), tag)
	}
	n := attempts(t, 48) // long enough for a p99 of the honest pulls
	var warmed atomic.Int64
	s.during(func() {
		flood(n, 4, asFast, func(i int) {
			body := fmt.Sprintf(`{"images":["docker.io/library/large:%s"],"platforms":["all"]}`, []string{"same", "each"}[i%2])
			req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, s.Admin+"/api/v1/warm", strings.NewReader(body))
			if err != nil {
				t.Error(err)
				return
			}
			req.Header.Set("Content-Type", "application/json")
			resp, err := http.DefaultClient.Do(req)
			if err != nil {
				t.Errorf("warm: %v", err)
				return
			}
			defer resp.Body.Close()
			said, err := io.ReadAll(resp.Body)
			if err != nil || resp.StatusCode != http.StatusOK {
				t.Errorf("warm: %s, %v: %.300s", resp.Status, err, said)
			}
			if strings.Contains(string(said), `"event":"end"`) && !strings.Contains(string(said), `"error"`) {
				warmed.Add(1)
			}
		})
	})
	t.Logf("%d of %d images warmed", warmed.Load(), n)
	if warmed.Load() != int64(n) {
		t.Error("some were not")
	}
}
