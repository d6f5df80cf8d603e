package proxy

import (
	"fmt"
	"net/http"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cachalot-registry/cachalot/upstream"
	ut "github.com/cachalot-registry/cachalot/upstream/upstreamtest"
)

func TestNewNames(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		n, err := newNewNames()
		if err != nil {
			t.Fatal(err)
		}
		allowed := func(client string, times int) (yes int) {
			for range times {
				if n.allow(client) {
					yes++
				}
			}
			return yes
		}
		if got := allowed("greedy", 3500); got != clientNames {
			t.Errorf("one client names %d, want %d", got, clientNames)
		}
		if got := allowed("other", 10); got != 10 {
			t.Errorf("another names %d of 10", got)
		}
		time.Sleep(3 * clientNamesEvery)
		if got := allowed("greedy", 100); got != 3 {
			t.Errorf("later it names %d more, want 3", got)
		}
		total := 0
		for i := range 100 {
			total += allowed(fmt.Sprint(i), 100)
		}
		if total > allNames {
			t.Errorf("all together name %d, want %d at most", total, allNames)
		}
	})
}

// TestNewNames_Refused: a client that names too many registries gets 503. Registries in
// use, and other clients, are still served.
func TestNewNames_Refused(t *testing.T) {
	t.Parallel()
	hub, other := ut.New(t, ut.Options{}), ut.New(t, ut.Options{})
	img := other.AddImage("team/app", "1", ut.NewImage(66, 1000))
	m := newMirror(t, func(c *Config) {
		c.TrustedProxies, c.ForwardedHeader = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}, "X-Forwarded-For"
		c.Unlisted = func(name string) (*upstream.Registry, error) { return registry(t, name, other.URL), nil }
	}, registry(t, "docker.io", hub.URL))
	from := func(client, path string) reply { return m.get(path, "X-Forwarded-For", client) }
	m.want(from("192.0.2.1", "/v2/team/app/manifests/1?ns=known.example"), img.Index)
	for n := 1; n < clientNames; n++ {
		from("192.0.2.1", fmt.Sprintf("/n%d.example/v2/", n))
	}
	a := from("192.0.2.1", "/v2/team/app/manifests/1?ns=more.example")
	m.wantError(a, http.StatusServiceUnavailable, "TOOMANYREQUESTS")
	if a.header.Get("Retry-After") == "" {
		t.Error("no Retry-After")
	}
	m.want(from("192.0.2.1", "/v2/team/app/manifests/1?ns=known.example"), img.Index)
	m.want(from("192.0.2.2", "/v2/team/app/manifests/1?ns=more.example"), img.Index)
}
