package proxy

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/distribution/distribution/v3/registry/api/errcode"
	"github.com/gorilla/mux"
	lru "github.com/hashicorp/golang-lru/v2"
	"go.opentelemetry.io/otel/trace"

	"github.com/cachalot-registry/cachalot/bounds"
	"github.com/cachalot-registry/cachalot/proxy/clients"
	"github.com/cachalot-registry/cachalot/proxy/hosts"
	"github.com/cachalot-registry/cachalot/proxy/image"
	"github.com/cachalot-registry/cachalot/storage"
	"github.com/cachalot-registry/cachalot/task"
	"github.com/cachalot-registry/cachalot/upstream"
)

// Config of a [Proxy].
type Config struct {
	DefaultUpstream   string        // for requests that name no registry
	FreshFor          time.Duration // how long after a check a tag is served without another
	MaxStale          time.Duration // the same, while its upstream fails
	RevalidateTimeout time.Duration // how long a client waits for a check while content is stored
	NegativeFor       time.Duration // how long a 404 is cached
	Rules             []Rule        // for some images
	// Hosts are the names of the mirror, besides the virtual hosts of upstreams, without a
	// port. "*.example.com" is all names below it. Empty: any name.
	Hosts []string
	// TrustedProxies are the addresses of load balancers. Their ForwardedHeader,
	// X-Forwarded-For or Forwarded, names the client; that of others is ignored.
	TrustedProxies  []netip.Prefix
	ForwardedHeader string
	// Tracer starts a span for each request; those of storage and upstream are below it.
	// Nil: no tracing.
	Tracer trace.Tracer
	// MaxChecks limits the concurrent checks at registries; zero: [DefaultChecks]. More are
	// refused. Share is the part of them for one registry, and for one client while others
	// need the rest; zero: a quarter.
	MaxChecks int
	Share     float64
	// Memory is the budget for manifests and lists that are read whole; nil: no limit.
	Memory *bounds.Memory
	// Unlisted returns a registry that is not configured, for the name that a client used.
	// Nil: such registries are refused. The Proxy closes the registry.
	Unlisted func(name string) (*upstream.Registry, error)
}

// remember bounds the in-memory records of what upstreams said a moment ago.
const remember = 8192

// Proxy serves the OCI distribution API, for pulls.
type Proxy struct {
	cfg        Config
	store      *storage.Store
	registries *registries
	metrics    *Metrics
	log        *slog.Logger
	routes     *mux.Router
	hosts      *hosts.List

	ctx       context.Context // of what outlives the requests that need it
	stop      context.CancelFunc
	running   sync.WaitGroup
	checks    *checks
	suspicion *suspicion
	negative  *negativeCache
	heads     headCache
	sizes     *lru.Cache[content, int64] // of long blobs, as a registry's manifests say; 0 for a manifest that was read

	pages     *tagPages
	readLists *readLists
	reader    image.Reader

	mu        sync.Mutex   // guards the fields below
	released  []image.Root // manifests of deleted tags that wait for markOrphans
	releasing bool         // markOrphans is running
}

// New returns a Proxy over store for the given upstreams. No two may have the
// same name, alias or virtual host.
func New(cfg Config, store *storage.Store, upstreams []Upstream, m *Metrics, log *slog.Logger) (*Proxy, error) {
	known, err := newRegistries(upstreams, cfg.DefaultUpstream, cfg.Unlisted, log)
	if err != nil {
		return nil, err
	}
	for i, r := range cfg.Rules {
		if err := r.Validate(cfg.MaxStale); err != nil {
			return nil, fmt.Errorf("rules[%d].%w", i, err)
		}
	}
	negative, err := newNegativeCache(cfg.NegativeFor)
	if err != nil {
		return nil, err
	}
	heads, err := newHeadCache()
	if err != nil {
		return nil, err
	}
	sizes, err := lru.New[content, int64](remember)
	if err != nil {
		return nil, err
	}
	pages, err := newTagPages()
	if err != nil {
		return nil, err
	}
	lists, err := newReadLists()
	if err != nil {
		return nil, err
	}
	suspicion, err := newSuspicion()
	if err != nil {
		return nil, err
	}
	ctx, stop := context.WithCancel(context.Background())
	p := &Proxy{
		cfg: cfg, store: store, registries: known, metrics: m, log: log,
		ctx: ctx, stop: stop, checks: newChecks(ctx, cfg.Memory, cfg.MaxChecks, cfg.Share),
		negative: negative, heads: heads, sizes: sizes, pages: pages, readLists: lists,
		suspicion: suspicion, reader: image.Reader{Memory: cfg.Memory},
	}
	p.routes = p.newRoutes()
	if len(cfg.Hosts) > 0 {
		p.hosts = hosts.New(slices.AppendSeq(slices.Clone(cfg.Hosts), maps.Keys(known.byHost))...)
	}
	return p, nil
}

// Close stops the checks in the background. Call it after the last request has ended.
func (p *Proxy) Close() {
	p.stop()
	p.running.Wait()
	p.checks.running.Wait()
	p.registries.close()
}

// ServeHTTP answers one request.
func (p *Proxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	rec := &response{ResponseWriter: w, started: time.Now(), secure: r.TLS != nil, result: resultError}
	p.metrics.inFlight.Add(1)
	rec.identify(r)
	p.trace(rec, r)
	defer p.finish(rec, r) // also when the handler breaks the connection off
	defer p.recovered(rec, r)
	apiVersion(rec)
	if !p.hosts.Serves(r.Host) {
		p.writeError(rec, r, refuse(errcode.ErrorCodeUnsupported, http.StatusMisdirectedRequest,
			"the mirror is not served as %q; ask for it by another of its names, or add this one to hosts in its configuration", bounds.Text(hosts.Name(r.Host))))
		return
	}
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		rec.Header().Set("Allow", "GET, HEAD")
		p.writeError(rec, r, refuse(errcode.ErrorCodeUnsupported, http.StatusMethodNotAllowed, "this is a read-only mirror; push to the registry itself"))
		return
	}
	if req, ok := parseRequest(r); ok { // mux would copy the request twice
		p.serveContent(rec, r, req)
		return
	}
	p.routes.ServeHTTP(rec, r)
}

// recovered answers a request whose handler has panicked, or cuts its answer if that has
// begun. It calls recover, so it must be deferred directly.
func (p *Proxy) recovered(w *response, r *http.Request) {
	switch value := recover(); value {
	case nil:
	case http.ErrAbortHandler: // writeError's
		panic(value)
	default:
		p.writeError(w, r, task.Recovered("request", value))
	}
}

// serveContent answers a request for content.
func (p *Proxy) serveContent(w *response, r *http.Request, req request) {
	t, err := p.target(req, bounds.Client(p.client(r)))
	if err == nil {
		t.policy, err = p.cfg.policyFor(t)
	}
	w.target = t
	w.target.kind = req.kind
	if err == nil {
		if req.namespace != "" {
			w.Header().Set("OCI-Namespace", req.namespace)
		}
		switch req.kind {
		case upstream.KindManifest:
			err = p.manifest(w, r, t)
		case upstream.KindBlob:
			err = p.blob(w, r, t)
		case upstream.KindTags:
			err = p.tags(w, r, req, t)
		case upstream.KindReferrers:
			err = p.referrers(w, r, req, t)
		}
	}
	if err != nil {
		p.writeError(w, r, err)
	}
}

// newRoutes returns the routes of all paths but those of content.
func (p *Proxy) newRoutes() *mux.Router {
	// Cleaning the path would answer `..` with a redirect.
	m := mux.NewRouter().SkipClean(true).UseEncodedPath()
	m.NotFoundHandler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p.writeError(w.(*response), r, refuse(errcode.ErrorCodeUnsupported, http.StatusNotFound, "no such endpoint"))
	})
	m.HandleFunc("/", p.page())
	for _, path := range []string{"/v2/", "/v2", "/{registry}/v2/", "/{registry}/v2"} {
		m.HandleFunc(path, p.version)
	}
	return m
}

// version answers the API's version check, at the root and below a registry's name. It
// never asks for credentials, because clients would send theirs.
func (p *Proxy) version(hw http.ResponseWriter, r *http.Request) {
	w := hw.(*response)
	if name := mux.Vars(r)["registry"]; name != "" {
		if _, err := p.registries.find(bounds.Client(p.client(r)), name); err != nil {
			p.writeError(w, r, err)
			return
		}
	}
	w.result, w.routine = resultHit, r.UserAgent() == clients.NodeUserAgent
	w.setCacheStatus()
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write([]byte("{}")) // a client that has left is no news
}

// apiVersion sets the header that older daemons need to use v2.
func apiVersion(w *response) {
	w.set("Docker-Distribution-Api-Version", "registry/2.0")
}
