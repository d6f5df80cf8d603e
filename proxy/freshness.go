package proxy

import (
	"context"
	"errors"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/cachalot-registry/cachalot/bounds"
	"github.com/cachalot-registry/cachalot/storage"
	"github.com/cachalot-registry/cachalot/task"
	"github.com/cachalot-registry/cachalot/upstream"
)

// verdict says how a pointer may be served.
type verdict int

const (
	expired verdict = iota // or unknown: serve only the upstream's answer
	stale                  // check it first; serve it if the check fails
	fresh                  // serve it without a check
)

// A pointer is removed from the index keptTimes max_stale after its last check.
const keptTimes = 2

// judge decides by the time since the last check. After a clock was set back, a pointer can
// have a check in the future: it is stale.
func (c Config) judge(tag storage.Tag, known bool, freshFor time.Duration, now time.Time) verdict {
	age := now.Sub(tag.Checked)
	switch {
	case !known || age >= c.MaxStale:
		return expired
	case age >= 0 && age < freshFor:
		return fresh
	default:
		return stale
	}
}

// pointer is one mutable name and the way to check it.
type pointer struct {
	key      storage.TagKey
	client   string        // whose request it is; "": no client's
	freshFor time.Duration // it is fresh so long after a check
	// followDenied: the tag is removed if the upstream denies access to it.
	followDenied bool
	// check asks the upstream what the name points to now. If the old content is stored,
	// new content is stored before check returns.
	check func(ctx context.Context, old storage.Tag, known bool) (digest.Digest, error)
}

// resolution is where a pointer points and how that is known.
type resolution struct {
	digest digest.Digest
	result result // hit, revalidated, miss or stale
}

// resolve returns the digest that the pointer points to, and checks it first unless it is
// fresh. Its errors are those of check.
func (p *Proxy) resolve(ctx context.Context, ptr pointer) (resolution, error) {
	tag, known := p.store.Tag(ptr.key)
	v := p.cfg.judge(tag, known, ptr.freshFor, time.Now())
	if v == fresh {
		return resolution{tag.Digest, resultHit}, nil
	}
	return p.revalidate(ctx, ptr, tag, v)
}

// revalidate checks a pointer. If it is stale, revalidate waits at most
// RevalidateTimeout and then returns the stored digest; the check continues.
func (p *Proxy) revalidate(ctx context.Context, ptr pointer, tag storage.Tag, v verdict) (resolution, error) {
	key := pointerKey(ptr.key)
	if err := p.negative.get(key); err != nil {
		return resolution{}, err
	}
	check := func(ctx context.Context) (resolution, error) { return p.check(ctx, ptr, key) }
	q := question{op: "check", about: key, holder: bounds.Holder{Group: ptr.key.Upstream, Repository: ptr.key.Repository, Client: ptr.client}}
	if v == expired {
		return once(ctx, p.checks, q, check)
	}

	stored := resolution{tag.Digest, resultStale}
	if p.suspicion.doubts(ptr.key) {
		p.probe(ptr.key, q, check)
		return stored, nil
	}
	wait, cancel := context.WithTimeoutCause(ctx, p.cfg.RevalidateTimeout, errSlow)
	defer cancel()
	res, err := once(wait, p.checks, q, check)
	switch {
	case err == nil, ptr.gone(err), ctx.Err() != nil:
		return res, err
	case errors.Is(err, errSlow):
		p.failed(ptr.key)
	}
	p.log.DebugContext(ctx, "served without a check", "upstream", ptr.key.Upstream, "repository", ptr.key.Repository,
		"name", ptr.key.Name, "checked", tag.Checked, "error", err)
	return stored, nil
}

// errSlow: the check takes longer than a client should wait.
var errSlow = errors.New("upstream takes longer than tags.revalidate_timeout")

// gone reports whether err is a reason to remove the pointer. All other errors are outages.
func (ptr pointer) gone(err error) bool {
	return upstream.SaysNo(err) || ptr.followDenied && errors.Is(err, upstream.ErrDenied)
}

// check asks the upstream and records its answer. It is the only place that removes a
// pointer because of an upstream's answer.
func (p *Proxy) check(ctx context.Context, ptr pointer, key cacheKey) (resolution, error) {
	// Another check may have ended since the caller looked.
	tag, known := p.store.Tag(ptr.key)
	if p.cfg.judge(tag, known, ptr.freshFor, time.Now()) == fresh {
		return resolution{tag.Digest, resultRevalidated}, nil
	}
	d, err := ptr.check(ctx, tag, known)
	switch {
	case err == nil:
	case ptr.gone(err):
		p.worked(ptr.key)
		if known {
			p.log.InfoContext(ctx, "tag or list deleted upstream; removing it", "upstream", ptr.key.Upstream, "repository", ptr.key.Repository, "name", ptr.key.Name, "error", err)
			if err := p.store.DeleteTag(ptr.key); err != nil {
				p.log.WarnContext(ctx, "cannot remove tag", "error", err)
			}
			p.release(ptr.key, tag.Digest)
		}
		return resolution{}, p.negative.add(key, err)
	default:
		switch {
		case !known:
			return resolution{}, p.negative.add(key, err)
		case errors.Is(err, upstream.ErrUnavailable):
			p.failed(ptr.key)
		}
		return resolution{}, err
	}
	p.worked(ptr.key)
	if err := p.store.PutTag(ptr.key, storage.Tag{Digest: d, Checked: time.Now()}, keptTimes*p.cfg.MaxStale); err != nil {
		p.log.WarnContext(ctx, "cannot store tag", "upstream", ptr.key.Upstream, "repository", ptr.key.Repository, "name", ptr.key.Name, "error", err)
	}
	if known && d == tag.Digest {
		return resolution{d, resultRevalidated}, nil
	}
	return resolution{d, resultMiss}, nil
}

func (p *Proxy) failed(k storage.TagKey) {
	if p.suspicion.fails(k) {
		p.log.Warn("upstream fails; serving stored content without a check", "upstream", k.Upstream)
	}
}

func (p *Proxy) worked(k storage.TagKey) {
	if p.suspicion.works(k) {
		p.log.Info("upstream answers again", "upstream", k.Upstream)
	}
}

// probe checks a suspect pointer in the background.
func (p *Proxy) probe(k storage.TagKey, q question, check func(context.Context) (resolution, error)) {
	if !p.suspicion.begin(k) {
		return
	}
	slow := time.AfterFunc(p.cfg.RevalidateTimeout, task.Guard("check in the background", func() { p.suspicion.slow(k) }))
	p.running.Go(task.Guard("check in the background", func() {
		defer p.suspicion.end(k)
		defer slow.Stop()
		// The error is not needed: the name stays suspect.
		_, _ = once(p.ctx, p.checks, q, check)
	}))
}
