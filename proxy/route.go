package proxy

import (
	"strings"

	"github.com/cachalot-registry/cachalot/hostport"
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
	var virtual *upstream.Registry
	if len(p.registries.byHost) > 0 {
		virtual = p.registries.byHost[hosts.Name(req.host)]
	}
	switch {
	case prefix != "":
		reg, err = p.registries.find(client, prefix)
	case named != nil && isRegistry(first, rest, ns):
		reg = named
	case ns != "":
		reg, err = p.registries.find(client, ns)
	case virtual != nil:
		reg = virtual
	default:
		reg = p.registries.byDefault
		// No account of Docker Hub has a dot or colon, so the first part names a registry,
		// perhaps with a _, which no registry has. What is no host at all is a bad name.
		if more && named == nil && reg.Name() == dockerHub && hostport.NamesRegistry(first) && hostport.Valid(first) {
			if reg, err = p.registries.find(client, first); err == nil {
				return reg, rest, nil
			}
		}
	}
	switch {
	case err != nil:
		return nil, "", err
	case named == reg && (prefix != "" || isRegistry(first, rest, ns)), more && hostport.NamesRegistry(first) && p.registries.name(first) == reg.Name():
		return reg, rest, nil
	}
	return reg, name, nil
}

// isRegistry reports whether the first part of a name, which is a registry's name or alias,
// is meant as a registry. As in image names, a dot or colon says so. A plain word can also be
// an account, if one other part follows it (Docker Hub has no deeper names), or if ns names
// the registry.
func isRegistry(first, rest, ns string) bool {
	return hostport.NamesRegistry(first) || ns == "" && strings.Contains(rest, "/")
}
