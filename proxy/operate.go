package proxy

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/cachalot-registry/cachalot/bounds"
	"github.com/cachalot-registry/cachalot/proxy/image"
	"github.com/cachalot-registry/cachalot/storage"
	"github.com/cachalot-registry/cachalot/upstream"
)

// This file has all methods of a Proxy that the admin API uses.

// Store is where content is stored.
func (p *Proxy) Store() *storage.Store { return p.store }

// Stored reads what is stored of images.
func (p *Proxy) Stored() image.Stored { return image.Stored{Store: p.store, Reader: p.reader} }

// Rules are those of the configuration.
func (p *Proxy) Rules() []Rule { return p.cfg.Rules }

// UpstreamStatus is an upstream, and how clients come to it.
type UpstreamStatus struct {
	Upstream

	Default   bool // it is used for requests that name no registry
	Unlisted  bool // it is not in the configuration
	Unchecked bool // it is suspect: its tags are served without a check
}

// Upstreams returns all known upstreams, in the order of their names.
func (p *Proxy) Upstreams() []UpstreamStatus {
	known := map[*upstream.Registry]*UpstreamStatus{}
	add := func(r *upstream.Registry) *UpstreamStatus {
		if known[r] == nil {
			known[r] = &UpstreamStatus{
				Upstream: Upstream{Registry: r}, Default: p.registries.byDefault == r, Unchecked: p.suspicion.doubtsUpstream(r.Name()),
			}
		}
		return known[r]
	}
	for name, r := range p.registries.byName {
		if u := add(r); name != r.Name() {
			u.Aliases = append(u.Aliases, name)
		}
	}
	for host, r := range p.registries.byHost {
		u := add(r)
		u.Hosts = append(u.Hosts, host)
	}
	for _, r := range p.registries.opened() {
		add(r).Unlisted = true
	}
	all := make([]UpstreamStatus, 0, len(known))
	for _, u := range known {
		slices.Sort(u.Aliases)
		slices.Sort(u.Hosts)
		all = append(all, *u)
	}
	slices.SortFunc(all, func(a, b UpstreamStatus) int { return cmp.Compare(a.Registry.Name(), b.Registry.Name()) })
	return all
}

// UpstreamName returns the name under which the store has content of an upstream, given a
// name or alias. The upstream need not exist now: stored content may be of an earlier
// configuration.
func (p *Proxy) UpstreamName(called string) string { return p.registries.name(called) }

// FullName returns an image's name with the upstream's name in place of an alias.
func (p *Proxy) FullName(name string) string {
	if first, rest, more := strings.Cut(name, "/"); more && isRegistry(first, rest, "") {
		return p.registries.name(first) + "/" + rest
	}
	return name
}

// Freshness says what a pull of a tag would do: "fresh": serve it without a check; "stale":
// check it first; "expired": fail if the check fails.
func (p *Proxy) Freshness(t storage.NamedTag) string {
	freshFor := p.cfg.FreshFor
	if r := p.registries.configured(t.Upstream); r != nil {
		if policy, err := p.cfg.policyFor(target{kind: upstream.KindManifest, registry: r, repo: t.Repository, tag: t.Name}); err == nil {
			freshFor = policy.freshFor
		}
	}
	switch p.cfg.judge(t.Tag, true, freshFor, time.Now()) {
	case fresh:
		return "fresh"
	case stale:
		return "stale"
	default:
		return "expired"
	}
}

// Forget removes cached answers about an upstream, repository and reference ("": all), so
// that the upstreams are asked again.
func (p *Proxy) Forget(upstream, repository, reference string) {
	concerns := func(k cacheKey) bool {
		return (upstream == "" || k.upstream == upstream) && (repository == "" || k.repository == repository) && (reference == "" || k.reference == reference)
	}
	remove(p.negative.entries, concerns)
	remove(p.heads.entries, concerns)
}

// Pull downloads an image as a client's pull does, with the same rules and fills: content
// that is stored, or being downloaded, is not downloaded again.
type Pull struct {
	p *Proxy
	t target
}

// NewPull returns a pull of a tag or, if d is not "", of a digest.
func (p *Proxy) NewPull(upstreamName, repository, tag string, d digest.Digest) (*Pull, error) {
	r, err := p.registries.find("", upstreamName)
	if err != nil {
		return nil, err
	}
	if len(repository) > maxName || !isName(repository) {
		return nil, fmt.Errorf("%q is not the name of a repository", bounds.Text(repository))
	}
	t := target{kind: upstream.KindManifest, registry: r, name: repository, repo: repository, digest: d}
	if d == "" {
		t.tag = cmp.Or(tag, "latest")
	}
	return &Pull{p, t}, nil
}

// Resolve returns the digest of the image. Call it before Fetch.
func (u *Pull) Resolve(ctx context.Context) (d digest.Digest, err error) {
	if u.t.policy, err = u.p.cfg.policyFor(u.t); err != nil {
		return "", err
	}
	if u.t.policy.noStore {
		return "", errors.New("a rule of the configuration says no_store for this repository")
	}
	if u.t.digest != "" {
		return u.t.digest, nil
	}
	resolved, err := u.p.resolve(ctx, u.p.tagPointer(u.t))
	return resolved.digest, err
}

// Fetch opens content, after it is downloaded and stored.
func (u *Pull) Fetch(ctx context.Context, kind upstream.Kind, d digest.Digest) (*storage.Blob, error) {
	t := u.t
	if t.kind = kind; kind == upstream.KindBlob {
		t.tag = ""
	}
	b, err := u.p.open(ctx, t, d)
	if err != nil {
		return nil, err
	}
	switch err = b.Wait(ctx); {
	case errors.Is(err, storage.ErrNotStored):
		err = errors.New("no space to store it")
	case err != nil:
		err = u.p.broke(ctx, t, d, err)
	case !u.p.store.IsStored(d):
		err = errors.New("could not be stored; the log says why")
	default:
		return b, nil
	}
	b.Close()
	return nil, err
}
