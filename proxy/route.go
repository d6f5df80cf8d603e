package proxy

import (
	"regexp"
	"strings"

	"github.com/cachalot-registry/cachalot/proxy/hosts"
	"github.com/cachalot-registry/cachalot/upstream"
)

// route finds the registry of a request, and the repository in it. Clients name
// the registry in one of these ways, of which the first counts:
//
//	/{registry}/v2/{repository}   dockerd, of a mirror's URL with a path
//	/v2/{registry}/{repository}   podman, kaniko, BuildKit
//	?ns={registry}                containerd, BuildKit
//	Host: {virtual host}          clients that can be configured only with a host
//	nothing                       default_upstream
//
// client is the client's address. If the registry is named twice, the second name is stripped.
func (p *Proxy) route(req request, client string) (reg *upstream.Registry, repo string, err error) {
	prefix, name, ns := req.registry, req.name, req.namespace
	first, rest, more := strings.Cut(name, "/")
	var named *upstream.Registry // nil unless the name begins with one of the configuration
	if more {
		named = p.registries.configured(first)
	}
	switch {
	case prefix != "":
		reg, err = p.registries.find(client, prefix)
	case named != nil && isRegistry(first, rest, ns):
		reg = named
	case ns != "":
		reg, err = p.registries.find(client, ns)
	case len(p.registries.byHost) > 0 && p.registries.byHost[hosts.Name(req.host)] != nil:
		reg = p.registries.byHost[hosts.Name(req.host)]
	default:
		reg = p.registries.byDefault
		// No account of Docker Hub has a dot or colon, so the first part names a registry,
		// perhaps with a bad name.
		if more && reg.Name() == dockerHub && named == nil && (looksLikeHost(first) || strings.Contains(first, ".") && badHostRegexp.MatchString(first)) {
			if reg, err = p.registries.find(client, first); err == nil {
				return reg, rest, nil
			}
		}
	}
	switch {
	case err != nil:
		return nil, "", err
	case named == reg && (prefix != "" || isRegistry(first, rest, ns)), more && looksLikeHost(first) && p.registries.name(first) == reg.Name():
		return reg, rest, nil
	}
	return reg, name, nil
}

// isRegistry reports whether the first part of a name, which is a registry's name or alias,
// is meant as a registry. As in image names, a dot or colon says so. A plain word can also be
// an account, if one other part follows it (Docker Hub has no deeper names), or if ns names
// the registry.
func isRegistry(first, rest, ns string) bool {
	return looksLikeHost(first) || ns == "" && strings.Contains(rest, "/")
}

// looksLikeHost is the rule that tells a registry from the first part of a repository (the
// distribution reference grammar).
func looksLikeHost(s string) bool {
	return s == "localhost" || strings.ContainsAny(s, ".:") && hostRegexp.MatchString(s)
}

// badHostRegexp matches names that were meant as a host, but have a _, which no host has.
var badHostRegexp = regexp.MustCompile(`^[a-zA-Z0-9_-]+[.][a-zA-Z0-9._-]+(:[0-9]+)?$`)

var hostRegexp = regexp.MustCompile(`^[a-zA-Z0-9]([a-zA-Z0-9.-]*[a-zA-Z0-9])?(:[0-9]+)?$`)
