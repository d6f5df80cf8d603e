package proxy

import (
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"sync"

	"github.com/distribution/distribution/v3/registry/api/errcode"
	lru "github.com/hashicorp/golang-lru/v2"

	"github.com/cachalot-registry/cachalot/bounds"
	"github.com/cachalot-registry/cachalot/proxy/clients"
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
	return append([]string{name, clients.PathName(name)}, u.Aliases...)
}

// maxUnlisted bounds the unlisted registries that are open at a time; clients name them.
const maxUnlisted = 64

// registries are those of the configuration, and the unlisted ones that clients have
// named. It is the only place that looks up a registry by a name, so that the configuration
// of a registry applies under all its names.
type registries struct {
	byName    map[string]*upstream.Registry // names and aliases of the configuration
	byHost    map[string]*upstream.Registry // virtual hosts
	byAddress map[string]*upstream.Registry // by host; nil for a host that several registries share
	byDefault *upstream.Registry
	make      func(name string) (*upstream.Registry, error) // makes an unlisted one; nil: not allowed
	log       *slog.Logger

	names *newNames

	mu       sync.Mutex                             // guards unlisted; held while a registry is made, so that each is made once
	unlisted *lru.Cache[string, *upstream.Registry] // by canonical name
}

func newRegistries(configured []Upstream, byDefault string, unlisted func(name string) (*upstream.Registry, error), log *slog.Logger) (*registries, error) {
	g := &registries{
		byName: map[string]*upstream.Registry{}, byHost: map[string]*upstream.Registry{}, byAddress: map[string]*upstream.Registry{},
		make: unlisted, log: log,
	}
	var err error
	if g.names, err = newNewNames(); err != nil {
		return nil, err
	}
	for _, u := range configured {
		for _, name := range u.names() {
			if has := g.byName[name]; has != nil && has != u.Registry {
				return nil, fmt.Errorf("%q names both upstream %s and upstream %s", name, has.Name(), u.Registry.Name())
			}
			g.byName[name] = u.Registry
		}
		for _, host := range u.Hosts {
			host = strings.ToLower(host)
			if has := g.byHost[host]; has != nil {
				return nil, fmt.Errorf("host %q belongs to both upstream %s and upstream %s", host, has.Name(), u.Registry.Name())
			}
			g.byHost[host] = u.Registry
		}
		if at := u.Registry.Host(); at != "" {
			if _, shared := g.byAddress[at]; shared {
				g.byAddress[at] = nil
			} else {
				g.byAddress[at] = u.Registry
			}
		}
	}
	if g.byDefault = g.configured(byDefault); g.byDefault == nil {
		return nil, fmt.Errorf("default_upstream %q is not among the upstreams", byDefault)
	}
	// A registry that the LRU drops is not closed, because requests may use it. It has only
	// connections, which close when they are idle.
	g.unlisted, err = lru.New[string, *upstream.Registry](maxUnlisted)
	return g, err
}

// close closes the unlisted registries. The caller of New closes the others.
func (g *registries) close() {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, r := range g.unlisted.Values() {
		r.Close()
	}
	g.unlisted.Purge()
}

// configured returns the registry of the configuration with a name or alias; nil: there is none.
func (g *registries) configured(name string) *upstream.Registry {
	if r := g.byName[name]; r != nil {
		return r
	}
	if lower := strings.ToLower(name); lower != name && g.byName[lower] != nil {
		return g.byName[lower]
	}
	canonical, ok := upstream.CanonicalName(name)
	if !ok {
		return nil
	}
	if r := g.byName[canonical]; r != nil {
		return r
	}
	return g.byAddress[canonical]
}

// find returns the registry for a name that a client used: a configured one, or an unlisted
// one if that is allowed. It sends no request.
func (g *registries) find(client, name string) (*upstream.Registry, error) {
	if r := g.configured(name); r != nil {
		return r, nil
	}
	refused := refuse(errcode.ErrorCodeNameUnknown, http.StatusNotFound, "registry %q is not configured here; add it under upstreams", bounds.Text(name))
	canonical, ok := upstream.CanonicalName(name)
	if g.make == nil || !ok {
		return nil, refused
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if r, ok := g.unlisted.Get(canonical); ok {
		return r, nil
	}
	if !g.names.allow(client) {
		return nil, errNames
	}
	r, err := g.make(canonical)
	if err != nil {
		g.log.Warn("unlisted registry refused", "name", canonical, "error", err)
		return nil, refused
	}
	g.unlisted.Add(canonical, r)
	return r, nil
}

// name returns the name under which the index has a registry, given a name or alias. The
// registry need not exist now: stored content may be of an earlier configuration.
func (g *registries) name(called string) string {
	if r := g.configured(called); r != nil {
		return r.Name()
	}
	if canonical, ok := upstream.CanonicalName(called); ok {
		return canonical
	}
	return called
}

// isUnlisted reports whether r is not in the configuration.
func (g *registries) isUnlisted(r *upstream.Registry) bool { return g.byName[r.Name()] == nil }

// opened returns the unlisted registries that are open.
func (g *registries) opened() []*upstream.Registry {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.unlisted.Values()
}
