package upstreamtest

import (
	"cmp"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// TB is the part of testing.TB that the registries need.
type TB interface {
	Helper()
	Fatalf(format string, args ...any)
	Cleanup(func())
	TempDir() string
}

// Options say what a registry is like; the zero value is an open one that
// serves its blobs itself.
type Options struct {
	TLS  bool // CAFile then names the certificate to trust
	Auth Auth
	// Username and Password are required by Basic and by the token server. Without them every
	// client gets a token.
	Username, Password string
	// Accounts are further ones, passwords by user name.
	Accounts map[string]string
	// RefreshToken is what the token server takes in place of a password, by POST.
	RefreshToken string
	// Quota is the number of GETs of manifests that each user has, the anonymous
	// one too; 0: no limit.
	Quota int
	// AnonymousToo: the token server also serves those without a password.
	AnonymousToo bool
	// TokenElsewhere puts the token server on another port.
	TokenElsewhere bool
	// TokenPath and Service are those of the challenge; "/token" and
	// "upstreamtest" where empty.
	TokenPath, Service string
	// ExpiresIn is what the token server says, in seconds; 0: nothing.
	ExpiresIn int
	// AccessToken names the token access_token instead of token.
	AccessToken bool
	// Scope replaces the scope of the challenge, as public.ecr.aws does ("aws").
	Scope string
	// CDN redirects every GET of a blob to a second server.
	CDN bool
	// NoReferrers leaves the referrers API out.
	NoReferrers bool
	// PageSize is the longest page of a list; 0: no limit.
	PageSize int
	// Header is added to every answer of /v2/, as rate limits are.
	Header http.Header
	// Address is where the registry listens; "": at any port of 127.0.0.1. Its
	// token server and CDN are at other ports of the same host.
	Address string
	// Listener, if not nil, wraps the listeners of the registry, its token server and its CDN,
	// to slow them down.
	Listener func(net.Listener) net.Listener
	// Memory is the network in memory where it listens; nil: loopback.
	Memory *Memory
}

// Auth is how a registry authenticates.
type Auth int

const (
	NoAuth Auth = iota
	Basic
	Bearer
)

// Registry is a scriptable registry.
type Registry struct {
	Recorder
	URL      string // http://127.0.0.1:PORT
	TokenURL string // the token realm
	CDNURL   string
	CAFile   string // with Options.TLS

	options Options
	tb      TB
	ended   chan struct{} // closed at the end of the test
	servers []*Server
	// tokenServer is one of servers, with TokenElsewhere.
	tokenServer *Server

	mu      sync.Mutex // guards all below
	repos   map[string]*repository
	scripts []*Scripted
	realm   string
	service string
	issued  []issued
	revoked int                // tokens before this one are no longer good
	signed  map[string]Content // by path of the signed URL
	signing int                // signed URLs given out so far
	counted map[string]int     // GETs of manifests, by user
}

type repository struct {
	manifests map[digest.Digest]Content
	blobs     map[digest.Digest]Content
	tags      map[string]digest.Digest
}

// New starts a registry. It ends with the test, and releases the requests that still wait.
func New(tb TB, o Options) *Registry {
	tb.Helper()
	if o.TokenPath == "" {
		o.TokenPath = "/token"
	}
	o.Address = cmp.Or(o.Address, anyPort)
	if o.Service == "" {
		o.Service = "upstreamtest"
	}
	r := &Registry{
		options: o, tb: tb, ended: make(chan struct{}), service: o.Service,
		repos: map[string]*repository{}, signed: map[string]Content{}, counted: map[string]int{},
	}
	scheme := "http"
	var certificate *pair
	if o.TLS {
		scheme = "https"
		certificate = newPair(tb)
		r.CAFile = filepath.Join(tb.TempDir(), "ca.pem")
		if err := os.WriteFile(r.CAFile, certificate.pem, 0o600); err != nil {
			tb.Fatalf("write the CA file: %v", err)
		}
	}
	start := func(address string, h http.HandlerFunc) string {
		s := &Server{tb: tb, handler: h, certificate: certificate, count: &r.Recorder, wrap: o.Listener, addr: address, memory: o.Memory}
		s.Up()
		r.servers = append(r.servers, s)
		return scheme + "://" + s.addr
	}
	host, _, err := net.SplitHostPort(o.Address)
	if err != nil {
		tb.Fatalf("address of the registry: %v", err)
	}
	others := net.JoinHostPort(host, "0")
	r.URL = start(o.Address, r.serveRegistry)
	r.TokenURL = r.URL + o.TokenPath
	if o.TokenElsewhere {
		r.TokenURL = start(others, r.serveToken) + o.TokenPath
		r.tokenServer = r.servers[len(r.servers)-1]
	}
	r.realm = r.TokenURL
	r.CDNURL = start(others, r.serveCDN)
	tb.Cleanup(func() {
		close(r.ended)
		for _, s := range r.servers {
			s.Down()
		}
	})
	return r
}

// Host is the registry's host:port.
func (r *Registry) Host() string { return hostOf(r.URL) }

// TokenHost is the token server's host:port.
func (r *Registry) TokenHost() string { return hostOf(r.TokenURL) }

func hostOf(u string) string {
	_, rest, _ := strings.Cut(u, "://")
	host, _, _ := strings.Cut(rest, "/")
	return host
}

// Down refuses and breaks all connections until Up, also those of the token server and the CDN.
func (r *Registry) Down() {
	for _, s := range r.servers {
		s.Down()
	}
}

// TokenDown refuses and breaks the connections of the token server until Up. It needs
// TokenElsewhere.
func (r *Registry) TokenDown() { r.tokenServer.Down() }

// Up listens again at the same addresses.
func (r *Registry) Up() {
	for _, s := range r.servers {
		s.Up()
	}
}

func (r *Registry) repo(name string) *repository {
	if r.repos[name] == nil {
		r.repos[name] = &repository{map[digest.Digest]Content{}, map[digest.Digest]Content{}, map[string]digest.Digest{}}
	}
	return r.repos[name]
}

// AddBlob makes a blob readable in repo.
func (r *Registry) AddBlob(repo string, blobs ...Content) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, b := range blobs {
		r.repo(repo).blobs[b.Digest] = b
	}
}

// AddManifest makes a manifest readable in repo, by digest and the tags given.
func (r *Registry) AddManifest(repo string, m Content, tags ...string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.repo(repo).manifests[m.Digest] = m
	for _, t := range tags {
		r.repo(repo).tags[t] = m.Digest
	}
}

// AddImage adds all of an image and points a tag at its index.
func (r *Registry) AddImage(repo, tag string, i Image) Image {
	r.AddBlob(repo, i.Blobs()...)
	r.AddManifest(repo, i.Manifest)
	r.AddManifest(repo, i.Index, tag)
	return i
}

// Tag points a tag at a manifest; "" removes the tag.
func (r *Registry) Tag(repo, tag string, d digest.Digest) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.repo(repo).tags[tag] = d
	if d == "" {
		delete(r.repo(repo).tags, tag)
	}
}

// Remove makes a manifest or blob unreadable in repo.
func (r *Registry) Remove(repo string, d digest.Digest) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.repo(repo).blobs, d)
	delete(r.repo(repo).manifests, d)
}

// find returns the manifest or blob that a reference names in repo.
func (r *Registry) find(repo, reference string, blob bool) (Content, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	p, ok := r.repos[repo]
	if !ok {
		return Content{}, false
	}
	d := digest.Digest(reference)
	if t, ok := p.tags[reference]; ok && !blob {
		d = t
	}
	if blob {
		c, ok := p.blobs[d]
		return c, ok
	}
	c, ok := p.manifests[d]
	return c, ok
}

func (r *Registry) tags(repo string) ([]string, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	p, ok := r.repos[repo]
	if !ok {
		return nil, false
	}
	list := []string{}
	for t := range p.tags {
		list = append(list, t)
	}
	slices.Sort(list)
	return list, true
}

func (r *Registry) referrers(repo string, d digest.Digest) []ocispec.Descriptor {
	r.mu.Lock()
	defer r.mu.Unlock()
	list := []ocispec.Descriptor{}
	p, ok := r.repos[repo]
	if !ok {
		return list
	}
	for _, m := range p.manifests {
		if subject, artifactType := subjectOf(m.Bytes); subject == d {
			entry := m.Descriptor
			entry.ArtifactType = artifactType
			list = append(list, entry)
		}
	}
	slices.SortFunc(list, func(a, b ocispec.Descriptor) int { return strings.Compare(string(a.Digest), string(b.Digest)) })
	return list
}
