// Package hosts says by which names a listener is asked for.
package hosts

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/cachalot-registry/cachalot/hostport"
)

// List has the names that a listener is asked for by (RFC 9110 section 7.2); others are
// answered 421. A page of another site can have the site's name resolve to the mirror's
// address (DNS rebinding). The browser then takes the two for one origin, and lets the
// page read what the mirror answers; but the Host of its requests is the site's name.
//
// No name server is asked for an address, nor for localhost (RFC 6761 section 6.3): they
// are served always. So is a request without a Host, which no browser sends. A Host that
// is no host is never served.
//
// The zero value serves no other host, and nil serves all.
type List struct {
	names map[string]bool
	// domains are those that all names below are served of, with a dot before each.
	domains []string
	// Private: names are served as well that no public name server answers for.
	Private bool
}

// New has names, without a port, of which one may be "*.example.com" for all below it.
func New(names ...string) *List {
	h := &List{names: map[string]bool{}}
	for _, name := range names {
		if domain, ok := strings.CutPrefix(name, "*."); ok {
			h.domains = append(h.domains, "."+Name(domain))
		} else {
			h.names[Name(name)] = true
		}
	}
	return h
}

// Serves reports whether a request with this Host is to be answered.
func (h *List) Serves(host string) bool {
	if h == nil {
		return true
	}
	if host == "" {
		return true
	}
	asked, ok := hostport.Parse(host)
	if !ok {
		return false
	}
	name := asked.Name
	if name == "localhost" || h.names[name] || h.Private && isPrivateName(name) {
		return true
	}
	if _, err := netip.ParseAddr(name); err == nil {
		return true
	}
	return slices.ContainsFunc(h.domains, func(domain string) bool { return strings.HasSuffix(name, domain) })
}

// isPrivateName reports whether a name is of one label, as of a container or a machine
// next door, or a Service of Kubernetes. No site can have such a name: .svc and .local
// are no domains of the public DNS (RFC 6762 section 3), and what has one label is looked
// for in the domains of the one that asks. NAME.NAMESPACE is not among them, for dev and app
// are public domains.
func isPrivateName(host string) bool {
	return !strings.Contains(host, ".") || strings.HasSuffix(host, ".svc") || strings.HasSuffix(host, ".svc.cluster.local")
}

// Name is the name in a Host, with or without a port, in one spelling. What is no host
// stays as it is, in small letters.
func Name(host string) string {
	if h, ok := hostport.Parse(host); ok {
		return h.Name
	}
	return strings.ToLower(host)
}

// IsLoopback says whether a host, with or without a port, is this one by its
// address or the one name that no resolver can turn elsewhere.
func IsLoopback(host string) bool {
	host = Name(host)
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.Unmap().IsLoopback() || host == "localhost"
}
