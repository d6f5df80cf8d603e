package upstream

import (
	"net/url"
	"strconv"
	"strings"
)

// maxHost bounds a host's name (RFC 1035 section 2.3.4).
const maxHost = 253

// CanonicalName is the one spelling of a registry's name, a host with or without a
// port: in small letters, without a dot at the end of the host, without zeros before
// the port, without the port of https, and docker.io for each of Docker Hub's hosts.
// ok is false where name is no host. Whatever is looked up, compared or kept by a
// registry's name goes by this spelling: rules hold for all others too.
func CanonicalName(name string) (canonical string, ok bool) {
	host, port, hasPort := strings.Cut(strings.ToLower(name), ":")
	host = strings.TrimSuffix(host, ".")
	if len(host) > maxHost || host != "localhost" && !hasPort && !strings.Contains(host, ".") {
		return "", false
	}
	for label := range strings.SplitSeq(host, ".") {
		if !isLabel(label) {
			return "", false
		}
	}
	switch host {
	case "index.docker.io", "registry-1.docker.io", "registry.hub.docker.com", "registry.docker.io", "hub.docker.com":
		host = "docker.io"
	}
	if !hasPort {
		return host, true
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil || n == 0 || port[0] == '+' {
		return "", false
	}
	if n == 443 && strings.Contains(host, ".") { // a word alone is no host, but for its port
		return host, true
	}
	return host + ":" + strconv.FormatUint(n, 10), true
}

// isLabel is for one label of a host's name (RFC 1123 section 2.1).
func isLabel(s string) bool {
	return s != "" && s[0] != '-' && s[len(s)-1] != '-' && strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789-") == ""
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
