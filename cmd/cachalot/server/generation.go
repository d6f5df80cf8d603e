package server

import (
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"slices"
	"sync"

	"github.com/cachalot-registry/cachalot/cmd/cachalot/config"
	"go.opentelemetry.io/otel/trace"

	"github.com/cachalot-registry/cachalot/bounds"
	"github.com/cachalot-registry/cachalot/proxy"
	"github.com/cachalot-registry/cachalot/storage"
	"github.com/cachalot-registry/cachalot/upstream"
)

// generation is what was created from one load of the configuration. A reload creates the next
// one, with the same store and metrics.
type generation struct {
	proxy      *proxy.Proxy
	registries []*upstream.Registry
	requests   sync.WaitGroup // requests in progress in this generation
}

// foundation is what all generations share.
type foundation struct {
	store           *storage.Store
	proxyMetrics    *proxy.Metrics
	upstreamMetrics *upstream.Metrics
	log             *slog.Logger
	tracer          trace.Tracer // nil: off
	memory          *bounds.Memory
}

func (f foundation) newGeneration(c config.Config) (*generation, error) {
	g := &generation{}
	var upstreams []proxy.Upstream
	for _, name := range slices.Sorted(maps.Keys(c.Upstreams)) {
		r, err := upstream.New(c.UpstreamConfig(name), f.upstreamMetrics, f.log)
		if err != nil {
			g.closeRegistries()
			return nil, fmt.Errorf("set up upstream %s: %w", name, err)
		}
		g.registries = append(g.registries, r)
		upstreams = append(upstreams, proxy.Upstream{Registry: r, Aliases: c.Upstreams[name].Aliases, Hosts: c.Upstreams[name].Hosts})
	}
	settings := c.ProxyConfig()
	settings.Tracer, settings.Memory = f.tracer, f.memory
	if c.UnlistedUpstreams == "allow" {
		settings.Unlisted = func(name string) (*upstream.Registry, error) {
			return upstream.New(c.UnlistedConfig(name), f.upstreamMetrics, f.log)
		}
	}
	var err error
	if g.proxy, err = proxy.New(settings, f.store, upstreams, f.proxyMetrics, f.log); err != nil {
		g.closeRegistries()
		return nil, fmt.Errorf("set up the proxy: %w", err)
	}
	return g, nil
}

// close waits for the requests of the generation to end. No new ones may come.
func (g *generation) close() {
	g.requests.Wait()
	g.proxy.Close()
	g.closeRegistries()
}

func (g *generation) closeRegistries() {
	for _, r := range g.registries {
		r.Close()
	}
}

// current is the generation that answers requests. It is an http.Handler.
type current struct {
	mu  sync.RWMutex // guards gen; a request is counted under it, before its generation can be replaced
	gen *generation  // nil while the process ends
}

func (c *current) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	p, done := c.use()
	if p == nil {
		http.Error(w, "shutting down", http.StatusServiceUnavailable)
		return
	}
	defer done()
	p.ServeHTTP(w, r)
}

// use returns the proxy of the current generation, which stays open until done is called; nil
// while the process ends.
func (c *current) use() (p *proxy.Proxy, done func()) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	g := c.gen
	if g == nil {
		return nil, nil
	}
	g.requests.Add(1)
	return g.proxy, g.requests.Done
}

// swap makes next the current generation. It returns the former one, which gets no new
// requests.
func (c *current) swap(next *generation) *generation {
	c.mu.Lock()
	defer c.mu.Unlock()
	old := c.gen
	c.gen = next
	return old
}
