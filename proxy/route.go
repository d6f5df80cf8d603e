package proxy

import (
	"net"
	"net/http"
	"regexp"
	"strings"

	"github.com/distribution/distribution/v3/registry/api/errcode"

	"github.com/cachalot-registry/cachalot/upstream"
)

// Upstream is a registry and how clients may name it besides by its own name.
type Upstream struct {
	Registry *upstream.Registry
	Aliases  []string // other names, such as dockerhub
	Hosts    []string // virtual hosts: what a request's Host may be, without a port
}

// names are all that clients may call the registry.
func (u Upstream) names() []string {
	name := u.Registry.Name()
	return append([]string{name, pathName(name)}, u.Aliases...)
}

// pathName is a registry's name for clients that put it into the path of an
// image's name, where no colon may be: registry.example.5000.
func pathName(registry string) string { return strings.ReplaceAll(registry, ":", ".") }

// route finds the registry of a request, and the repository in it. Clients name
// the registry in one of these ways, of which the first counts:
//
//	/{registry}/v2/{repository}   dockerd, of a mirror's URL with a path
//	/v2/{registry}/{repository}   podman, kaniko, BuildKit
//	?ns={registry}                containerd, BuildKit
//	Host: {virtual host}          whoever can be given a host only
//	nothing                       default_upstream
//
// prefix is what stands before /v2, name what follows it. Where a registry is
// named twice, the second time is stripped.
func (p *Proxy) route(r *http.Request, prefix, name string) (reg *upstream.Registry, repo string, err error) {
	first, rest, more := strings.Cut(name, "/")
	named := p.registries[first] // nil unless the name begins with a registry
	if !more {
		named = nil
	}
	ns := namespace(r)
	switch {
	case prefix != "":
		if reg = p.registries[strings.ToLower(prefix)]; reg == nil {
			reg, err = p.unlisted(prefix)
		}
	case named != nil && isRegistry(first, rest, ns):
		reg = named
	case ns != "":
		if reg = p.registries[strings.ToLower(ns)]; reg == nil {
			reg, err = p.unlisted(ns)
		}
	case len(p.hosts) > 0 && p.hosts[hostOf(r)] != nil:
		reg = p.hosts[hostOf(r)]
	default:
		reg = p.registries[p.cfg.DefaultUpstream]
		// No account of Docker Hub has a dot or colon in it: that is a registry, if
		// perhaps one with a bad name.
		if more && reg.Name() == dockerHub && named == nil && (looksLikeHost(first) || strings.Contains(first, ".") && badHostRegexp.MatchString(first)) {
			if reg, err = p.unlisted(first); err == nil {
				return reg, rest, nil
			}
		}
	}
	switch {
	case err != nil:
		return nil, "", err
	case named == reg && (prefix != "" || isRegistry(first, rest, ns)), more && first == reg.Name():
		return reg, rest, nil
	}
	return reg, name, nil
}

// isRegistry reports whether the first part of a name, which is a registry's
// name or alias, is meant as one. As in image names, a dot or colon tells so. A
// plain word could be an account too, if one other part follows it (Docker Hub
// has no deeper names), or if the registry is named otherwise.
func isRegistry(first, rest, ns string) bool {
	return looksLikeHost(first) || ns == "" && strings.Contains(rest, "/")
}

// looksLikeHost is the rule by which image names are told from registries' (the
// distribution reference grammar).
func looksLikeHost(s string) bool {
	return s == "localhost" || strings.ContainsAny(s, ".:") && hostRegexp.MatchString(s)
}

// badHostRegexp is for names that were meant as a host's: no host has a _.
var badHostRegexp = regexp.MustCompile(`^[a-zA-Z0-9_-]+[.][a-zA-Z0-9._-]+(:[0-9]+)?$`)

var hostRegexp = regexp.MustCompile(`^[a-zA-Z0-9]([a-zA-Z0-9.-]*[a-zA-Z0-9])?(:[0-9]+)?$`)

// maxUnlisted registries are kept open at a time; clients name them.
const maxUnlisted = 64

// unlisted returns a registry that is not configured, where that is allowed,
// or refuses it before anybody is asked.
func (p *Proxy) unlisted(name string) (*upstream.Registry, error) {
	refused := refuse(errcode.ErrorCodeNameUnknown, http.StatusNotFound, "registry %q is not configured here; add it under upstreams", bounded(name))
	name = strings.ToLower(name)
	if p.cfg.Unlisted == nil || !looksLikeHost(name) || len(name) > maxName {
		return nil, refused
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if r, ok := p.strangers.Get(name); ok {
		return r, nil
	}
	r, err := p.cfg.Unlisted(name)
	if err != nil {
		p.log.Warn("unlisted registry refused", "name", name, "error", err)
		return nil, refused
	}
	p.strangers.Add(name, r)
	return r, nil
}

// isStranger reports whether r is unlisted.
func (p *Proxy) isStranger(r *upstream.Registry) bool { return p.registries[r.Name()] == nil }

// namespace is the registry a client names by ?ns=.
func namespace(r *http.Request) string {
	if r.URL.RawQuery == "" {
		return ""
	}
	return r.URL.Query().Get("ns")
}

// hostOf is the request's virtual host, in one spelling.
func hostOf(r *http.Request) string {
	host := r.Host
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	return strings.TrimSuffix(strings.ToLower(host), ".")
}
