// Package hosts decides under which names a listener serves requests.
package hosts

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/cachalot-registry/cachalot/hostport"
)

// List has the names under which a listener serves requests (RFC 9110 section 7.2); requests
// for others get 421. A page of another site can have the site's name resolve to the mirror's
// address (DNS rebinding). The browser then takes the two for one origin, and lets the page
// read the mirror's responses; but the Host of its requests is the site's name.
//
// Addresses and localhost (RFC 6761 section 6.3) are always served, because no name server is
// asked for them. So is a request without a Host, which no browser sends. A Host with invalid
// syntax is never served.
//
// The zero value serves no other host, and nil serves all.
type List struct {
	names map[string]bool
	// domains are those whose names below them are all served, each with a dot before it.
	domains []string
	// Private: names that do not exist in the public DNS are served too.
	Private bool
}

// New returns a List of names, without a port. A name may be "*.example.com": all names below
// it.
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

// Serves reports whether a request with this Host is served.
func (h *List) Serves(host string) bool {
	if h == nil || host == "" {
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

// isPrivateName reports whether a name has one label, as that of a container or of another
// machine, or is that of a Service of Kubernetes. No site can have such a name: .svc and .local
// are not domains of the public DNS (RFC 6762 section 3), and a resolver looks for a single
// label in its own search domains. NAME.NAMESPACE is not accepted, because dev and app are
// public domains.
func isPrivateName(host string) bool {
	return !strings.Contains(host, ".") || strings.HasSuffix(host, ".svc") || strings.HasSuffix(host, ".svc.cluster.local")
}

// Name returns the name in a Host, with or without a port, in one spelling. Text that is no
// host is returned in lower case.
func Name(host string) string {
	if h, ok := hostport.Parse(host); ok {
		return h.Name
	}
	return strings.ToLower(host)
}

// IsLoopback reports whether a host, with or without a port, is a loopback address, or
// localhost, the one name that no resolver can turn elsewhere.
func IsLoopback(host string) bool {
	host = Name(host)
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.Unmap().IsLoopback() || host == "localhost"
}
