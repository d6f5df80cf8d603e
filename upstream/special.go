package upstream

import (
	"fmt"
	"net/netip"
)

// specialPrefixes are prefixes of addresses that no public server has, and what they are:
// the special-purpose registries of IANA (RFC 6890), multicast, and one address that has
// a meaning in a cloud. The first prefix that contains an address counts.
//
//nolint:gochecknoglobals // a constant table
var specialPrefixes = []struct {
	prefix netip.Prefix
	class  string
}{
	{netip.MustParsePrefix("0.0.0.0/32"), "the unspecified address (RFC 1122)"},
	{netip.MustParsePrefix("0.0.0.0/8"), "an address of this host or network (RFC 1122)"},
	{netip.MustParsePrefix("10.0.0.0/8"), "a private address (RFC 1918)"},
	{netip.MustParsePrefix("100.64.0.0/10"), "a carrier's shared address (RFC 6598)"},
	{netip.MustParsePrefix("127.0.0.0/8"), "a loopback address (RFC 1122)"},
	{netip.MustParsePrefix("168.63.129.16/32"), "Azure's platform address"},
	{netip.MustParsePrefix("169.254.0.0/16"), "a link-local address (RFC 3927), as clouds use for metadata"},
	{netip.MustParsePrefix("172.16.0.0/12"), "a private address (RFC 1918)"},
	{netip.MustParsePrefix("192.0.0.0/24"), "an address for protocols (RFC 6890)"},
	{netip.MustParsePrefix("192.0.2.0/24"), "a documentation address (RFC 5737)"},
	{netip.MustParsePrefix("192.88.99.0/24"), "a 6to4 relay's address (RFC 7526)"},
	{netip.MustParsePrefix("192.168.0.0/16"), "a private address (RFC 1918)"},
	{netip.MustParsePrefix("198.18.0.0/15"), "a benchmarking address (RFC 2544)"},
	{netip.MustParsePrefix("198.51.100.0/24"), "a documentation address (RFC 5737)"},
	{netip.MustParsePrefix("203.0.113.0/24"), "a documentation address (RFC 5737)"},
	{netip.MustParsePrefix("224.0.0.0/4"), "a multicast address (RFC 5771)"},
	{netip.MustParsePrefix("255.255.255.255/32"), "the broadcast address (RFC 919)"},
	{netip.MustParsePrefix("240.0.0.0/4"), "a reserved address (RFC 1112)"},

	{netip.MustParsePrefix("::/128"), "the unspecified address (RFC 4291)"},
	{netip.MustParsePrefix("::1/128"), "a loopback address (RFC 4291)"},
	// Each network chooses where in it the IPv4 address is.
	{netip.MustParsePrefix("64:ff9b:1::/48"), "a local NAT64 address (RFC 8215)"},
	{netip.MustParsePrefix("100::/64"), "a discard address (RFC 6666)"},
	{netip.MustParsePrefix("2001:2::/48"), "a benchmarking address (RFC 5180)"},
	{netip.MustParsePrefix("2001::/23"), "an address for protocols (RFC 2928)"},
	{netip.MustParsePrefix("2001:db8::/32"), "a documentation address (RFC 3849)"},
	{netip.MustParsePrefix("3fff::/20"), "a documentation address (RFC 9637)"},
	{netip.MustParsePrefix("fc00::/7"), "a private address (RFC 4193)"},
	{netip.MustParsePrefix("fe80::/10"), "a link-local address (RFC 4291)"},
	{netip.MustParsePrefix("fec0::/10"), "a site-local address (RFC 3879)"},
	{netip.MustParsePrefix("ff00::/8"), "a multicast address (RFC 4291)"},
}

// globalUnicast is the part of IPv6 that has been allocated (RFC 4291 section 2.4).
//
//nolint:gochecknoglobals // a constant
var globalUnicast = netip.MustParsePrefix("2000::/3")

// embeddings are prefixes of IPv6 addresses that contain an IPv4 address.
//
//nolint:gochecknoglobals // a constant table
var embeddings = []struct {
	prefix netip.Prefix
	class  string
	within func(b [16]byte) [][4]byte
}{
	{netip.MustParsePrefix("64:ff9b::/96"), "the NAT64 address (RFC 6052)", func(b [16]byte) [][4]byte {
		return [][4]byte{[4]byte(b[12:])}
	}},
	{netip.MustParsePrefix("2002::/16"), "the 6to4 address (RFC 3056)", func(b [16]byte) [][4]byte {
		return [][4]byte{[4]byte(b[2:6])}
	}},
	// The server, and the client with all bits flipped (section 4).
	{netip.MustParsePrefix("2001::/32"), "the Teredo address (RFC 4380)", func(b [16]byte) [][4]byte {
		return [][4]byte{[4]byte(b[4:8]), {^b[12], ^b[13], ^b[14], ^b[15]}}
	}},
}

// special returns what a is if it is not an address of a public server, else "".
// For an IPv6 address that contains an IPv4 address, the latter counts. A NAT64 prefix
// from a network's own addresses (RFC 6052 section 2.2) looks like any other prefix.
func special(a netip.Addr) string {
	a = plain(a)
	for _, e := range embeddings {
		if !e.prefix.Contains(a) {
			continue
		}
		for _, b := range e.within(a.As16()) {
			v4 := netip.AddrFrom4(b)
			if class := special(v4); class != "" {
				return fmt.Sprintf("%s of %s, %s", e.class, v4, class)
			}
		}
		return ""
	}
	for _, s := range specialPrefixes {
		if s.prefix.Contains(a) {
			return s.class
		}
	}
	if !a.Is4() && !globalUnicast.Contains(a) {
		return "a reserved address (RFC 4291)"
	}
	return ""
}
