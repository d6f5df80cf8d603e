package attack

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	ut "github.com/cachalot-registry/cachalot/upstream/upstreamtest"
)

// TestOrigin: a hostile registry sends wrong content, refuses or breaks off under the
// digests of an honest one. The honest one's clients get the right bytes. The test logs
// their time, disturbed and undisturbed.
func TestOrigin(t *testing.T) {
	s := lay(t, "")
	garbage := bytes.Repeat([]byte("x"), 2<<20)
	lies := []struct {
		name   string
		faults []ut.Fault
		stalls bool // after 20 KiB
	}{
		{"trickles", []ut.Fault{ut.Body("", garbage), ut.TrickleAfter(20<<10, 50*time.Millisecond)}, false},
		{"stalls", []ut.Fault{ut.Body("", garbage)}, true},
		{"another media type", []ut.Fault{ut.Body("text/html", garbage)}, true},
		{"refuses late", []ut.Fault{ut.Delay(time.Second), ut.Status(http.StatusNotFound)}, false},
		{"breaks off", []ut.Fault{ut.Body("", garbage), ut.CutAfter(1 << 20)}, false},
		{"fails", []ut.Fault{ut.Status(http.StatusInternalServerError)}, false},
	}
	const pairs = 15
	seed := uint64(3000)
	pull := func(name string, faults []ut.Fault, stalls bool) (all time.Duration) {
		if stalls {
			release := make(chan struct{})
			defer close(release) // frees the registry's slot for the next pull
			faults = append(slices.Clip(faults), ut.StallAfter(20<<10, release))
		}
		seed++
		img := s.hub.AddImage("library/victim", name, ut.NewImage(seed, 4<<20))
		for _, c := range []ut.Content{img.Index, img.Layers[0]} {
			all += s.victim(name, faults, c)
		}
		return all
	}
	s.beside(func() {
		for _, lie := range lies {
			var took, ratios []float64
			for i := range pairs {
				var disturbed, undisturbed time.Duration
				if i%2 == 0 { // the order alternates
					undisturbed = pull("nothing", nil, false)
				}
				disturbed = pull(lie.name, lie.faults, lie.stalls)
				if i%2 != 0 {
					undisturbed = pull("nothing", nil, false)
				}
				took = append(took, disturbed.Seconds()*1000)
				ratios = append(ratios, disturbed.Seconds()/undisturbed.Seconds())
			}
			slices.Sort(took)
			slices.Sort(ratios)
			t.Logf("%s: the honest registry's client has all after %.0f ms, %.2f of what it is undisturbed (medians of %d pairs, quartiles %.2f and %.2f)",
				lie.name, took[pairs/2], ratios[pairs/2], pairs, ratios[pairs/4], ratios[pairs*3/4])
		}
	})
}

// victim pulls content of the honest registry, and returns the time. With faults, the
// hostile registry has already begun to send that digest.
func (s *siege) victim(name string, faults []ut.Fault, c ut.Content) time.Duration {
	s.t.Helper()
	kind := "blobs/"
	if strings.Contains(c.MediaType, "index") {
		kind = "manifests/"
	}
	if faults != nil {
		arrived := make(chan struct{})
		s.evil.Fault(ut.Match{Reference: c.Digest.String(), Method: http.MethodGet}, append(slices.Clip(faults), ut.Arrived(arrived))...)
		ctx, leave := context.WithCancel(s.t.Context())
		left := make(chan struct{})
		go func() {
			defer close(left)
			_ = s.get(ctx, http.DefaultClient, "/v2/evil.test/a/b/"+kind+c.Digest.String(), c) // it gets the hostile bytes
		}()
		select {
		case <-arrived:
		case <-left: // refused, after many failures of the registry
		}
		leave()
		<-left
	}
	path := "/v2/library/victim/" + kind + c.Digest.String()
	begun := time.Now()
	if err := s.get(s.t.Context(), http.DefaultClient, path, c); err != nil {
		s.t.Errorf("%s: %v", name, err)
	}
	took := time.Since(begun)
	resp, err := http.Head(s.URL + path) //nolint:noctx // loopback
	if err != nil {
		s.t.Error(err)
		return took
	}
	_ = resp.Body.Close()
	if got := resp.Header.Get("Content-Type"); strings.Contains(got, "html") {
		s.t.Errorf("%s: its media type %s is served", name, got)
	}
	return took
}

// TestOrigin_Word: content that needs an account is not served through another registry
// that only claims to have it.
func TestOrigin_Word(t *testing.T) {
	s := lay(t, "")
	s.evil.Fault(ut.Match{Op: ut.HeadBlob}, ut.Body("", s.secret.Bytes))
	path := "/v2/evil.test/a/b/blobs/" + s.secret.Digest.String()
	for _, method := range []string{http.MethodHead, http.MethodGet} {
		for range 3 {
			req, err := http.NewRequestWithContext(t.Context(), method, s.URL+path, http.NoBody)
			if err != nil {
				t.Fatal(err)
			}
			resp, err := http.DefaultClient.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			_ = resp.Body.Close()
			if resp.StatusCode != http.StatusNotFound {
				t.Errorf("%s: %s", method, resp.Status)
			}
		}
	}
	s.evil.AddBlob("a/c", s.secret) // now the registry has it
	if err := s.get(t.Context(), http.DefaultClient, "/v2/evil.test/a/c/blobs/"+s.secret.Digest.String(), s.secret); err != nil {
		t.Error(err)
	}
	if err := s.get(t.Context(), http.DefaultClient, "/v2/private.test/team/app/blobs/"+s.secret.Digest.String(), s.secret); err != nil {
		t.Error(err)
	}
}

// TestOrigin_Page: a browser runs no scripts of a registry's content.
func TestOrigin_Page(t *testing.T) {
	s := lay(t, "")
	for i, mediaType := range []string{"text/html", "application/xhtml+xml", "image/svg+xml", "text/xml", "application/xml; charset=utf-8", "text/html; x=application/vnd.oci.image.index.v1+json"} {
		m := ut.NewContent(mediaType, fmt.Appendf(nil, `{"schemaVersion":2,"layers":[],"a":"<script>%d</script>"}`, i))
		s.evil.AddManifest("a/b", m, fmt.Sprint("t", i))
		resp, err := http.Get(s.URL + "/v2/evil.test/a/b/manifests/" + m.Digest.String()) //nolint:noctx // loopback
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		sandboxed := strings.Contains(resp.Header.Get("Content-Security-Policy"), "sandbox") && resp.Header.Get("X-Content-Type-Options") == "nosniff"
		if inert := strings.HasPrefix(resp.Header.Get("Content-Type"), "application/vnd."); !sandboxed && !inert {
			t.Errorf("%s: %s, %v", mediaType, resp.Status, resp.Header)
		}
	}
}
