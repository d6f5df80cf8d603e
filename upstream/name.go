package upstream

import (
	"net/url"
	"strings"

	"github.com/cachalot-registry/cachalot/hostport"
)

// CanonicalName returns the one spelling of a registry's name, a host with or without a
// port: in lower case, without a dot at the end of the host, without zeros before
// the port, without the port of https, and docker.io for each of Docker Hub's hosts.
// ok is false if name is no host, or an IPv6 address: those have only the spelling of the
// configuration. All that is looked up, compared or stored by a registry's name uses this
// spelling, so that rules apply to all other spellings too.
func CanonicalName(name string) (canonical string, ok bool) {
	if !hostport.NamesRegistry(strings.ToLower(name)) {
		return "", false // a plain word, as the first part of most names
	}
	h, ok := hostport.Parse(name)
	h.Rooted = false
	if !ok || h.Is6() || !h.InImage() || !hostport.NamesRegistry(h.String()) {
		return "", false
	}
	switch h.Name {
	case "index.docker.io", "registry-1.docker.io", "registry.hub.docker.com", "registry.docker.io", "hub.docker.com":
		h.Name = "docker.io"
	}
	if h.Port == 443 && strings.Contains(h.Name, ".") { // without a dot, only the port makes it a host
		h.Port = 0
	}
	return h.String(), true
}

// Host returns the host of the registry's own URL, the last one, as [CanonicalName] spells
// it: an image name with this host means this registry. It is "" if the repositories have
// a prefix there, or the host has no such name.
func (r *Registry) Host() string {
	u, err := url.Parse(r.cfg.URLs[len(r.cfg.URLs)-1])
	if err != nil || strings.Trim(u.Path, "/") != "" {
		return ""
	}
	name, _ := CanonicalName(u.Host)
	return name
}
