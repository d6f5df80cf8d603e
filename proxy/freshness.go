package proxy

import (
	"context"
	"errors"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/cachalot-registry/cachalot/storage"
	"github.com/cachalot-registry/cachalot/upstream"
)

// verdict is Freshness's word on a pointer.
type verdict int

const (
	tooOld  verdict = iota // or unknown: only the upstream's answer may be served
	toCheck                // ask the upstream; serve it if that fails
	fresh                  // serve it
)

// keptTimes max_stale after its last check, a pointer is forgotten.
const keptTimes = 2

// judge decides by the time since the pointer was checked. A clock that was set
// back makes a pointer look checked in the future: it is checked again.
func (c Config) judge(tag storage.Tag, known bool, freshFor time.Duration, now time.Time) verdict {
	age := now.Sub(tag.Checked)
	switch {
	case !known || age >= c.MaxStale:
		return tooOld
	case age >= 0 && age < freshFor:
		return fresh
	default:
		return toCheck
	}
}

// pointer is one mutable name and the way to check it.
type pointer struct {
	key      storage.TagKey
	freshFor time.Duration // served unchecked so long after a check
	// check asks the upstream what the name points to now. What it points to
	// newly is kept before check returns, where something was kept before.
	check func(ctx context.Context, old storage.Tag, known bool) (digest.Digest, error)
}

// resolution is where a pointer points and how that is known.
type resolution struct {
	digest digest.Digest
	result result // hit, revalidated, miss or stale
}

// resolve returns the digest that the pointer's name has, as fresh as
// configured. Its errors are those of check.
func (p *Proxy) resolve(ctx context.Context, ptr pointer) (resolution, error) {
	tag, known := p.store.Tag(ptr.key)
	v := p.cfg.judge(tag, known, ptr.freshFor, time.Now())
	if v == fresh {
		return resolution{tag.Digest, resultHit}, nil
	}
	name := ptr.key.Upstream + "\x00" + ptr.key.Repository + "\x00" + ptr.key.Name
	if err := p.recall(name); err != nil {
		return resolution{}, err
	}
	check := func(ctx context.Context) (resolution, error) { return p.check(ctx, ptr, name) }
	if v == tooOld {
		return once(ctx, p, name, check)
	}

	stale := resolution{tag.Digest, resultStale}
	if p.isSuspect(ptr.key.Upstream) {
		p.probe(ptr.key.Upstream, name, check)
		return stale, nil
	}
	wait, cancel := context.WithTimeoutCause(ctx, p.cfg.RevalidateTimeout, errSlow)
	defer cancel()
	res, err := once(wait, p, name, check)
	switch {
	case err == nil, saysNo(err), ctx.Err() != nil:
		return res, err
	case errors.Is(err, errSlow):
		p.setSuspect(ptr.key.Upstream, true)
	}
	p.log.DebugContext(ctx, "served without a check", "upstream", ptr.key.Upstream, "repository", ptr.key.Repository,
		"name", ptr.key.Name, "checked", tag.Checked, "error", err)
	return stale, nil
}

// errSlow: the check takes longer than a client should wait.
var errSlow = errors.New("upstream takes longer than tags.revalidate_timeout")

// saysNo reports whether the upstream answered that it will not serve this, as
// opposed to not being able to.
func saysNo(err error) bool {
	return errors.Is(err, upstream.ErrNotFound) || errors.Is(err, upstream.ErrDenied)
}

// check asks the upstream and records what it says.
func (p *Proxy) check(ctx context.Context, ptr pointer, name string) (resolution, error) {
	// Another check may have ended between this caller's look and its turn.
	tag, known := p.store.Tag(ptr.key)
	if p.cfg.judge(tag, known, ptr.freshFor, time.Now()) == fresh {
		return resolution{tag.Digest, resultRevalidated}, nil
	}
	d, err := ptr.check(ctx, tag, known)
	switch {
	case err == nil:
	case saysNo(err):
		p.setSuspect(ptr.key.Upstream, false)
		if known {
			p.log.InfoContext(ctx, "gone upstream", "upstream", ptr.key.Upstream, "repository", ptr.key.Repository, "name", ptr.key.Name, "error", err)
			if err := p.store.DeleteTag(ptr.key); err != nil {
				p.log.WarnContext(ctx, "cannot forget tag", "error", err)
			}
			p.release(ptr.key, tag.Digest)
		}
		return resolution{}, p.note(name, err)
	default:
		if known && errors.Is(err, upstream.ErrUnavailable) {
			p.setSuspect(ptr.key.Upstream, true)
		}
		return resolution{}, err
	}
	p.setSuspect(ptr.key.Upstream, false)
	if err := p.store.PutTag(ptr.key, storage.Tag{Digest: d, Checked: time.Now()}, keptTimes*p.cfg.MaxStale); err != nil {
		p.log.WarnContext(ctx, "cannot record tag", "upstream", ptr.key.Upstream, "repository", ptr.key.Repository, "name", ptr.key.Name, "error", err)
	}
	if known && d == tag.Digest {
		return resolution{d, resultRevalidated}, nil
	}
	return resolution{d, resultMiss}, nil
}

func (p *Proxy) isSuspect(name string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	_, ok := p.suspect[name]
	return ok
}

func (p *Proxy) setSuspect(name string, is bool) {
	p.mu.Lock()
	_, was := p.suspect[name]
	if is {
		p.suspect[name] = struct{}{}
	} else {
		delete(p.suspect, name)
	}
	p.mu.Unlock()
	switch {
	case is && !was:
		p.log.Warn("upstream fails; what is kept is served unchecked", "upstream", name)
	case was && !is:
		p.log.Info("upstream answers again", "upstream", name)
	}
}

// probe checks in the background, unless that upstream is being probed already.
func (p *Proxy) probe(name, key string, check func(context.Context) (resolution, error)) {
	p.mu.Lock()
	_, busy := p.probing[name]
	p.probing[name] = struct{}{}
	p.mu.Unlock()
	if busy {
		return
	}
	p.running.Go(func() {
		// Its error is for nobody: the upstream stays suspect.
		_, _ = once(p.ctx, p, key, check)
		p.mu.Lock()
		delete(p.probing, name)
		p.mu.Unlock()
	})
}

// remembered is a refusal that need not be asked for again yet.
type remembered struct {
	err   error
	until time.Time
}

func (e *remembered) Error() string { return e.err.Error() + " (remembered)" }
func (e *remembered) Unwrap() error { return e.err }

// recall returns the remembered refusal of name, if any.
func (p *Proxy) recall(name string) error {
	if r, ok := p.refused.Get(name); ok && time.Now().Before(r.until) {
		return &r
	}
	return nil
}

// note remembers err if it is the upstream's no, and returns it.
func (p *Proxy) note(name string, err error) error {
	if saysNo(err) {
		p.refused.Add(name, remembered{err: err, until: time.Now().Add(p.cfg.NegativeFor)})
	}
	return err
}
