package upstream

import (
	"net/netip"
	"strings"
	"testing"
)

func TestSpecial(t *testing.T) {
	t.Parallel()
	for address, want := range map[string]string{
		"1.1.1.1": "", "9.255.255.255": "", "11.0.0.0": "", "100.63.255.255": "", "100.128.0.0": "",
		"126.255.255.255": "", "128.0.0.0": "", "168.63.129.15": "", "169.253.255.255": "", "169.255.0.0": "",
		"172.15.255.255": "", "172.32.0.0": "", "192.167.255.255": "", "192.169.0.0": "", "198.17.255.255": "",
		"198.20.0.0": "", "223.255.255.255": "",
		"2606:4700::1111": "", "2400:cb00::1": "", "2001:4860:4860::8888": "", "2a00:1450::1%eth0": "",
		"2001:200::1": "", "2001:db7:ffff::1": "", "2001:db9::1": "", "3ffe:ffff::1": "",

		"0.0.0.0": "the unspecified address (RFC 1122)", "0.1.2.3": "RFC 1122",
		"10.0.0.0": "a private address (RFC 1918)", "10.255.255.255": "RFC 1918",
		"100.64.0.0": "shared address (RFC 6598)", "100.100.100.200": "RFC 6598", "100.127.255.255": "RFC 6598",
		"127.0.0.1": "a loopback address (RFC 1122)", "127.255.255.255": "loopback",
		"168.63.129.16": "Azure", "169.254.169.254": "a link-local address (RFC 3927)", "169.254.0.0": "link-local",
		"172.16.0.0": "RFC 1918", "172.31.255.255": "RFC 1918", "192.168.0.1": "RFC 1918",
		"192.0.0.192": "RFC 6890", "192.0.2.1": "RFC 5737", "198.51.100.1": "RFC 5737", "203.0.113.1": "RFC 5737",
		"192.88.99.1": "RFC 7526", "198.18.0.1": "RFC 2544", "198.19.255.255": "RFC 2544",
		"224.0.0.1": "a multicast address (RFC 5771)", "239.255.255.255": "RFC 5771",
		"240.0.0.0": "a reserved address (RFC 1112)", "255.255.255.254": "RFC 1112", "255.255.255.255": "the broadcast address (RFC 919)",

		"::": "the unspecified address (RFC 4291)", "::1": "a loopback address (RFC 4291)", "::1%lo": "loopback",
		"fc00::": "a private address (RFC 4193)", "fd00:ec2::254": "RFC 4193", "fdff::%eth0": "RFC 4193",
		"fe80::1": "a link-local address (RFC 4291)", "fe80::1%eth0": "link-local", "febf::1%2": "link-local",
		"fec0::1": "RFC 3879", "ff02::1": "a multicast address (RFC 4291)", "ff0e::1%eth0": "multicast",
		"100::1": "RFC 6666", "2001:2::1": "RFC 5180", "2001:10::1": "RFC 2928", "2001:1ff::1": "RFC 2928",
		"2001:db8::1": "RFC 3849", "3fff:fff::1": "RFC 9637", "5f00::1": "a reserved address (RFC 4291)", "4000::1": "reserved",
		"::127.0.0.1": "reserved", "::8.8.8.8": "reserved", "::ffff:0:127.0.0.1": "reserved", "1fff::1": "reserved",

		"::ffff:1.1.1.1": "", "::ffff:10.1.2.3": "RFC 1918", "::ffff:127.0.0.1": "RFC 1122", "::ffff:7f00:1%eth0": "RFC 1122",
		"::ffff:169.254.169.254": "RFC 3927",
		"64:ff9b::1.1.1.1":       "", "64:ff9b::10.1.2.3": "the NAT64 address (RFC 6052) of 10.1.2.3, a private address (RFC 1918)",
		"64:ff9b::a9fe:a9fe%eth0": "of 169.254.169.254, a link-local",
		"64:ff9b:1::1.1.1.1":      "RFC 8215", "64:ff9b:1:ffff::1": "RFC 8215", "64:ff9b:2::1": "reserved", "64:ff9b:0:1::1": "reserved",
		"2002:101:101::1": "", "2002:7f00:1::1": "the 6to4 address (RFC 3056) of 127.0.0.1", "2002:c0a8:101::": "of 192.168.1.1",
		"2001:0:101:101::fefe:fefe": "", "2001:0:a00:1::fefe:fefe": "the Teredo address (RFC 4380) of 10.0.0.1",
		"2001:0:101:101::80ff:fffe": "of 127.0.0.1",
	} {
		got := special(netip.MustParseAddr(address))
		if (got == "") != (want == "") || !strings.Contains(got, want) {
			t.Errorf("%s: %q, want %q", address, got, want)
		}
	}
}

// FuzzSpecial: all forms of an address have the same class. An allowed address is public for
// the standard library too.
func FuzzSpecial(f *testing.F) {
	for _, seed := range []string{"\x7f\x00\x00\x01", "\x0a\x01\x02\x03", "\x01\x01\x01\x01", "\xa9\xfe\xa9\xfe", "\x64\xff\x9b\x01"} {
		f.Add([]byte(seed), []byte("\xfd\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"))
	}
	f.Add([]byte("\x01\x01\x01\x01"), []byte("\x00\x64\xff\x9b\x00\x01\x00\x00\x00\x00\x00\x00"))
	f.Fuzz(func(t *testing.T, tail, head []byte) {
		if len(tail) != 4 || len(head) != 12 {
			return
		}
		v4 := netip.AddrFrom4([4]byte(tail))
		class := special(v4)
		at := func(prefix string, offset int, flip byte) netip.Addr {
			b := netip.MustParseAddr(prefix).As16()
			for i, c := range tail {
				b[offset+i] = c ^ flip
			}
			return netip.AddrFrom16(b)
		}
		if got := special(at("::ffff:0:0", 12, 0)); got != class {
			t.Errorf("%s: %q, and mapped %q", v4, class, got)
		}
		for name, a := range map[string]netip.Addr{
			"NAT64": at("64:ff9b::", 12, 0), "6to4": at("2002::1", 2, 0),
			"Teredo client": at("2001:0:101:101::", 12, 0xff), "Teredo server": at("2001:0:101:101::fefe:fefe", 4, 0),
		} {
			if got := special(a); (got == "") != (class == "") || !strings.Contains(got, class) {
				t.Errorf("%s: %q, and as %s %s: %q", v4, class, name, a, got)
			}
		}
		if special(at("64:ff9b:1::", 12, 0)) == "" || special(at("::", 12, 0)) == "" {
			t.Errorf("%s: reached by local NAT64 or as an IPv4-compatible address", v4)
		}
		v6 := netip.AddrFrom16([16]byte(append(append([]byte(nil), head...), tail...)))
		for _, a := range []netip.Addr{v4, v6} {
			class := special(a)
			if class == "" && (!a.IsGlobalUnicast() || a.IsPrivate() || a.IsLoopback() || a.IsLinkLocalUnicast() || a.IsMulticast() || a.IsUnspecified()) {
				t.Errorf("%s may be reached", a)
			}
			if got := special(a.WithZone("eth0")); got != class {
				t.Errorf("%s: %q, and with a zone %q", a, class, got)
			}
		}
	})
}
