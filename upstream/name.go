package upstream

import (
	"net/url"
	"strings"

	"github.com/cachalot-registry/cachalot/hostport"
)

// CanonicalName is the one spelling of a registry's name, a host with or without a
// port: in small letters, without a dot at the end of the host, without zeros before
// the port, without the port of https, and docker.io for each of Docker Hub's hosts.
// ok is false where name is no host, or an IPv6 address: those have only the spelling of the configuration.
// Whatever is looked up, compared or kept by a registry's name goes by this spelling:
// rules hold for all others too.
func CanonicalName(name string) (canonical string, ok bool) {
	h, ok := hostport.Parse(name)
	if !ok || h.Is6() || !hostport.IsRegistry(h.String()) {
		return "", false
	}
	switch h.Name {
	case "index.docker.io", "registry-1.docker.io", "registry.hub.docker.com", "registry.docker.io", "hub.docker.com":
		h.Name = "docker.io"
	}
	if h.Port == 443 && strings.Contains(h.Name, ".") { // a word alone is no host, but for its port
		h.Port = 0
	}
	return h.String(), true
}

// Host is the name of the host that the registry itself is at, as of
// [CanonicalName]: who names it so means this registry. It is "" where its
// repositories have a prefix there, or it has no such name.
func (r *Registry) Host() string {
	u, err := url.Parse(r.cfg.URLs[len(r.cfg.URLs)-1])
	if err != nil || strings.Trim(u.Path, "/") != "" {
		return ""
	}
	name, _ := CanonicalName(u.Host)
	return name
}
