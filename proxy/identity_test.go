package proxy

import (
	"net/http"
	"net/netip"
	"strings"
	"testing"
)

func behind(header string, trusted ...string) *Proxy {
	p := &Proxy{cfg: Config{ForwardedHeader: header}}
	for _, s := range trusted {
		p.cfg.TrustedProxies = append(p.cfg.TrustedProxies, netip.MustParsePrefix(s))
	}
	return p
}

// The client is the last address that a trusted proxy names. Other headers have no effect.
func TestClientAddress(t *testing.T) {
	t.Parallel()
	const xff, forwarded = "X-Forwarded-For", "Forwarded"
	long := strings.Repeat("10.0.0.9, ", 5000)
	for name, tc := range map[string]struct {
		header string
		remote string
		given  []string // of header
		other  string   // of the other header
		want   string
	}{
		"no proxy":                       {xff, "203.0.113.9:1234", nil, "", "203.0.113.9"},
		"no proxy, IPv6":                 {xff, "[2001:db8::9]:1234", nil, "", "2001:db8::9"},
		"forged, not by a proxy":         {xff, "203.0.113.9:1234", []string{"198.51.100.1"}, "for=198.51.100.1", "203.0.113.9"},
		"by a proxy":                     {xff, "10.0.0.1:1234", []string{"198.51.100.1"}, "", "198.51.100.1"},
		"by a proxy on a mapped address": {xff, "[::ffff:10.0.0.1]:1234", []string{"198.51.100.1"}, "", "198.51.100.1"},
		"forged before a proxy":          {xff, "10.0.0.1:1234", []string{"192.0.2.66, 198.51.100.1"}, "", "198.51.100.1"},
		"forged in a line of its own":    {xff, "10.0.0.1:1234", []string{"192.0.2.66", "198.51.100.1"}, "", "198.51.100.1"},
		"forged as a proxy's":            {xff, "10.0.0.1:1234", []string{"10.0.0.7, 198.51.100.1"}, "", "198.51.100.1"},
		"two proxies":                    {xff, "10.0.0.1:1234", []string{"192.0.2.66, 198.51.100.1, 10.0.0.2"}, "", "198.51.100.1"},
		"two proxies, two lines":         {xff, "10.0.0.1:1234", []string{"192.0.2.66, 198.51.100.1", "10.0.0.2"}, "", "198.51.100.1"},
		"with a port":                    {xff, "10.0.0.1:1234", []string{"198.51.100.1:4711"}, "", "198.51.100.1"},
		"IPv6":                           {xff, "10.0.0.1:1234", []string{"2001:db8::1"}, "", "2001:db8::1"},
		"IPv6 with a port":               {xff, "10.0.0.1:1234", []string{"[2001:db8::1]:4711"}, "", "2001:db8::1"},
		"a zone":                         {xff, "10.0.0.1:1234", []string{"fe80::1%eth0"}, "", "fe80::1"},
		"a proxy is the client":          {xff, "10.0.0.1:1234", nil, "", "10.0.0.1"},
		"all are proxies":                {xff, "10.0.0.1:1234", []string{"10.0.0.3, 10.0.0.2"}, "", "10.0.0.3"},
		"not an address":                 {xff, "10.0.0.1:1234", []string{"198.51.100.1, unknown"}, "", "10.0.0.1"},
		"not an address, further back":   {xff, "10.0.0.1:1234", []string{"<script>, 10.0.0.2"}, "", "10.0.0.2"},
		"empty":                          {xff, "10.0.0.1:1234", []string{""}, "", "10.0.0.1"},
		"an empty element":               {xff, "10.0.0.1:1234", []string{"198.51.100.1, "}, "", "10.0.0.1"},
		"endless":                        {xff, "10.0.0.1:1234", []string{"198.51.100.1, " + long + "10.0.0.2"}, "", "10.0.0.9"},
		"the other header":               {xff, "10.0.0.1:1234", nil, "for=198.51.100.1", "10.0.0.1"},
		"the other header, both":         {xff, "10.0.0.1:1234", []string{"198.51.100.1"}, "for=192.0.2.66", "198.51.100.1"},
		"Forwarded":                      {forwarded, "10.0.0.1:1234", []string{"for=192.0.2.66, for=198.51.100.1;proto=https;by=10.0.0.1"}, "192.0.2.77", "198.51.100.1"},
		"Forwarded, IPv6":                {forwarded, "10.0.0.1:1234", []string{`proto=https; For="[2001:db8::1]:4711"`}, "", "2001:db8::1"},
		"Forwarded, two proxies":         {forwarded, "10.0.0.1:1234", []string{"for=198.51.100.1", "for=10.0.0.2"}, "", "198.51.100.1"},
		"Forwarded, hidden":              {forwarded, "10.0.0.1:1234", []string{"for=198.51.100.1, for=_gazonk"}, "", "10.0.0.1"},
		"Forwarded, without for":         {forwarded, "10.0.0.1:1234", []string{"for=198.51.100.1, proto=http"}, "", "10.0.0.1"},
		"Forwarded, for twice":           {forwarded, "10.0.0.1:1234", []string{"for=198.51.100.1;for=192.0.2.66"}, "", "10.0.0.1"},
		"a socket":                       {xff, "@", []string{"198.51.100.1"}, "", "@"},
	} {
		other := forwarded
		if tc.header == forwarded {
			other = xff
		}
		r := &http.Request{RemoteAddr: tc.remote, Header: http.Header{}}
		for _, line := range tc.given {
			r.Header.Add(tc.header, line)
		}
		if tc.other != "" {
			r.Header.Set(other, tc.other)
		}
		if got := behind(tc.header, "10.0.0.0/8", "fd00::/8").client(r); got != tc.want {
			t.Errorf("%s: %s, want %s", name, got, tc.want)
		}
		direct := withoutPort(tc.remote)
		if got := behind(tc.header).client(r); got != direct {
			t.Errorf("%s, and no proxy trusted: %s, want %s", name, got, direct)
		}
	}
}

// Text that a client sends before the proxy's own entry has no effect.
func FuzzClientAddress(f *testing.F) {
	f.Add("192.0.2.66", false)
	f.Add(`for="[::1]:1";for=x, ,`, true)
	f.Add("10.0.0.2, 10.0.0.3", false)
	f.Fuzz(func(t *testing.T, forged string, standard bool) {
		header, own := "X-Forwarded-For", "198.51.100.1"
		if standard {
			header, own = "Forwarded", "for=198.51.100.1"
		}
		r := &http.Request{RemoteAddr: "10.0.0.1:1234", Header: http.Header{}}
		r.Header.Set(header, forged+", "+own)
		if got := behind(header, "10.0.0.0/8").client(r); got != "198.51.100.1" {
			t.Errorf("%q makes it %q", forged, got)
		}
		r.Header.Set(header, forged)
		r.Header.Add(header, own)
		if got := behind(header, "10.0.0.0/8").client(r); got != "198.51.100.1" {
			t.Errorf("%q in a line of its own makes it %q", forged, got)
		}
		if _, ok := parseHop(forged, header); ok && forged == "" {
			t.Error("nothing is an address")
		}
	})
}
