package attack

import (
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
)

// TestNames_Spellings: a rule that denies a registry applies to every spelling of its name.
func TestNames_Spellings(t *testing.T) {
	s := lay(t, "unlisted_upstreams: allow\nrules: [{match: ['docker.io/library/denied'], access: deny}, {match: ['corp.test:5000/**'], access: deny}]")
	held := 0
	s.hub.AddImage("library/denied", "1", s.image)
	names := []string{
		"docker.io", "docker.io:443", "docker.io:0443", "Docker.IO", "docker.io.", "docker.io.:443", "index.docker.io",
		"registry-1.docker.io", "registry.hub.docker.com", "registry.hub.docker.com.:00443", s.hub.Host(), strings.Replace(s.hub.Host(), ":", ":0", 1),
	}
	for _, name := range names {
		for _, path := range []string{"/v2/library/denied/manifests/1?ns=" + name, "/v2/" + name + "/library/denied/manifests/1", "/" + name + "/v2/library/denied/manifests/1"} {
			resp, err := http.Get(s.URL + path) //nolint:noctx // loopback
			if err != nil {
				t.Fatal(err)
			}
			_ = resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				t.Errorf("%s: %s", path, resp.Status)
				continue
			}
			held++
		}
	}
	t.Logf("%d of %d spellings held", held, 3*len(names))
}

// TestNames_Many: a client that names thousands of registries gets 503. Other registries stay open.
func TestNames_Many(t *testing.T) {
	s := lay(t, "unlisted_upstreams: allow")
	n := attempts(t, 2000)
	var later atomic.Int64
	s.during(func() {
		flood(n, 32, 3500, func(i int) {
			resp, err := http.Get(fmt.Sprintf("%s/n%d.invalid/v2/", s.URL, i)) //nolint:noctx // loopback
			if err != nil {
				t.Error(err)
				return
			}
			_ = resp.Body.Close()
			if resp.StatusCode == http.StatusServiceUnavailable {
				later.Add(1)
			}
		})
		s.cold(20, "/v2/library/app/blobs/", s.hub, "library/app")
	})
	if later.Load() < int64(n)*9/10 {
		t.Errorf("%d of %d new names were told to come back", later.Load(), n)
	}
}
