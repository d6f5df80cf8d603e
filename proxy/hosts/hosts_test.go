package hosts

import (
	"net/netip"
	"net/url"
	"strings"
	"testing"

	"github.com/cachalot-registry/cachalot/hostport"
)

func TestHosts_Serves(t *testing.T) {
	t.Parallel()
	named := New("mirror.example", "Hub.Example.", "*.ci.example")
	private := New()
	private.Private = true
	for _, tc := range []struct {
		hosts  *List
		host   string
		served bool
	}{
		{nil, "evil.example", true},
		{named, "mirror.example", true},
		{named, "MIRROR.example.:5000", true},
		{named, "hub.example", true},
		{named, "a.ci.example", true},
		{named, "a.b.ci.example:5000", true},
		{named, "ci.example", false},
		{named, "evilci.example", false},
		{named, "mirror.example.evil.example", false},
		{named, "a.mirror.example", false},
		{named, "mirror", false},
		{named, "mirror.ns.svc", false},
		{named, "evil.example:5000", false},
		// No name server decides these.
		{named, "", true},
		{named, "127.0.0.1", true},
		{named, "10.1.2.3:5000", true},
		{named, "[::1]:5000", true},
		{named, "[fd00::1]", true},
		{named, "localhost:5000", true},
		{named, "LocalHost.", true},
		{named, "localhost.evil.example", false},
		{named, "127.0.0.1.evil.example", false},
		{named, "127.1", false},
		{named, "0x7f000001", false},
		{named, "2130706433", false},
		// These are not hosts.
		{private, ":5000", false},
		{private, "cachalot:", false},
		{private, "cachalot:0", false},
		{private, "cachalot:5000:5000", false},
		{private, "a@cachalot", false},
		{private, "cachalot/", false},
		{private, "[cachalot]", false},
		{private, "[::1", false},
		{private, "::1", false},
		{private, "[fe80::1%eth0]:5000", false},
		{private, ".", false},
		// No public name server has these.
		{private, "cachalot:5001", true},
		{private, "my_mirror:5001", true},
		{private, "cachalot-0.mirror-headless.ns.svc:5001", true},
		{private, "mirror.ns.svc.cluster.local.", true},
		{private, "cachalot.dev", false},
		{private, "evil.cluster.local", false},
		{private, "svc.evil.example", false},
		{private, "evil.svc.example", false},
		{private, "evilsvc.example", false},
		{New(), "cachalot:5001", false},
		{New(), "mirror.ns.svc", false},
	} {
		if got := tc.hosts.Serves(tc.host); got != tc.served {
			t.Errorf("%+v serves %q: %v", tc.hosts, tc.host, got)
		}
	}
}

// FuzzHost: a name that a browser may use for a page of another site is not served.
func FuzzHost(f *testing.F) {
	for _, s := range []string{"mirror.test", "MIRROR.test.:5000", "a.example.com", "evil.test", "evil.test:80", "[::1]:5000", "127.0.0.1", "0x7f.1", "localhost.", "evil.svc", "mirror", "mirror.test.evil.test", "[mirror.test]", "a@mirror.test", "", ":80", "evil.test:mirror.test"} {
		f.Add(s)
	}
	h := New("mirror.test", "*.example.com")
	f.Fuzz(func(t *testing.T, host string) {
		name := Name(host)
		if again := Name(name); again != name {
			t.Errorf("%q: %q, and %q", host, name, again)
		}
		if !h.Serves(host) {
			return
		}
		if !hostport.Valid(host) && host != "" {
			t.Errorf("%q is no host, and served", host)
		}
		// A browser sends the host of a URL unchanged.
		u, err := url.Parse("http://" + host + "/")
		if err != nil || u.Host != host || u.User != nil {
			return // no browser sends this
		}
		site := strings.ToLower(strings.TrimSuffix(u.Hostname(), "."))
		_, err = netip.ParseAddr(site)
		if err != nil && site != "" && site != "localhost" && site != "mirror.test" && !strings.HasSuffix(site, ".example.com") {
			t.Errorf("%q is served", host)
		}
	})
}

func TestIsLoopback(t *testing.T) {
	t.Parallel()
	for _, remote := range []string{"10.0.0.1:1234", "[fe80::1%eth0]:1", "192.168.0.1:80", "", "x"} {
		if IsLoopback(remote) {
			t.Errorf("%q taken for loopback", remote)
		}
	}
	for _, remote := range []string{"127.0.0.1:1", "[::1]:1", "127.9.9.9:1", "[::ffff:127.0.0.1]:1"} {
		if !IsLoopback(remote) {
			t.Errorf("%q not taken for loopback", remote)
		}
	}
}
