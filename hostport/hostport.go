// Package hostport reads hosts with or without a port, as URLs, Host fields and the names
// of images have them: registry.example, registry.example:5000, 192.0.2.1 or [2001:db8::1]:5000.
// It is the only host syntax in this module. Callers decide which hosts they accept.
package hostport

import (
	"net/netip"
	"strconv"
	"strings"
)

// Host is a parsed host.
type Host struct {
	// Name is in lower case, without a dot at its end. An IPv6 address has no brackets.
	Name string
	Port uint16 // 0: none
	// Rooted: a dot ends the name (RFC 1034 section 3.1). It names the same host.
	Rooted bool
}

const (
	maxName  = 253 // bytes of a name in text (RFC 1035 section 2.3.4)
	maxLabel = 63
)

// Parse reads a host: labels of letters, digits and hyphens (RFC 1123 section 2.1), or an
// IPv6 address in brackets without a zone (RFC 3986 section 3.2.2, RFC 6874), and a port
// from 1 to 65535. A label may have underscores, as names of services in Compose do.
func Parse(s string) (h Host, ok bool) {
	name := s
	if i := strings.LastIndexByte(s, ':'); i > strings.LastIndexByte(s, ']') {
		port, err := strconv.ParseUint(s[i+1:], 10, 16)
		if err != nil || port == 0 {
			return Host{}, false
		}
		name, h.Port = s[:i], uint16(port)
	}
	if literal, ok := strings.CutPrefix(name, "["); ok {
		literal, closed := strings.CutSuffix(literal, "]")
		address, err := netip.ParseAddr(literal)
		if !closed || err != nil || !address.Is6() || address.Zone() != "" {
			return Host{}, false
		}
		h.Name = strings.ToLower(literal)
		return h, true
	}
	name, h.Rooted = strings.CutSuffix(name, ".")
	if len(name) > maxName {
		return Host{}, false
	}
	for label := range strings.SplitSeq(name, ".") {
		if !isLabel(label) {
			return Host{}, false
		}
	}
	h.Name = strings.ToLower(name)
	return h, true
}

// Valid reports whether s is a host with or without a port.
func Valid(s string) bool {
	_, ok := Parse(s)
	return ok
}

func isLabel(s string) bool {
	if s == "" || len(s) > maxLabel || s[0] == '-' || s[len(s)-1] == '-' {
		return false
	}
	for i := range len(s) {
		switch c := s[i]; {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '_', c == '-':
		default:
			return false
		}
	}
	return true
}

// String returns the host in one spelling: in lower case, without a dot at the end of the
// name and without zeros before the port.
func (h Host) String() string {
	name := h.Name
	if h.Is6() {
		name = "[" + name + "]"
	}
	if h.Port == 0 {
		return name
	}
	return name + ":" + strconv.Itoa(int(h.Port))
}

// Is6 reports whether the host is an IPv6 address.
func (h Host) Is6() bool { return strings.Contains(h.Name, ":") }

// InImage reports whether the name of an image can begin with the host as it was written
// (the distribution reference grammar). It cannot with an underscore, a dot at the end of
// the name, or an IPv4 address inside an IPv6 one.
func (h Host) InImage() bool {
	if h.Is6() {
		return !strings.Contains(h.Name, ".")
	}
	return !h.Rooted && !strings.Contains(h.Name, "_")
}

// NamesRegistry reports whether the first part of an image's name is meant as a registry,
// and not as a part of the repository's name. It says nothing about its syntax.
func NamesRegistry(first string) bool {
	// ContainsAny takes four times as long, and a request asks more than once.
	return strings.IndexByte(first, '.') >= 0 || strings.IndexByte(first, ':') >= 0 || first == "localhost"
}

// IsRegistry reports whether s is a registry in the name of an image: a host, and meant
// as one.
func IsRegistry(s string) bool {
	h, ok := Parse(s)
	return ok && h.InImage() && NamesRegistry(s)
}
