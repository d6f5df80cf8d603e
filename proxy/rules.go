package proxy

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/distribution/distribution/v3/registry/api/errcode"

	"github.com/bmatcuk/doublestar/v4"

	"github.com/cachalot-registry/cachalot/upstream"
)

// Rule has settings for some images. For each setting, the first rule that matches and
// has it applies.
type Rule struct {
	// Match are patterns of UPSTREAM/REPOSITORY, optionally with :TAG. In one
	// part * stands for any characters; ** stands for any number of parts; [0-9]
	// and {a,b} are as in a shell. A pattern with a tag matches only manifests that are
	// requested by tag.
	Match []string `yaml:"match"`
	// Access is "allow" or "deny". A denied request gets a 404 with the reason, and no
	// upstream is asked.
	Access string `yaml:"access"`
	// FreshFor replaces [Config.FreshFor].
	FreshFor *time.Duration `yaml:"fresh_for"`
	// KeepFor is how long after its last use content of these repositories is evicted. It
	// is also evicted before other content when space is needed. Zero: no limit.
	KeepFor *time.Duration `yaml:"keep_for"`
	// NoStore: content of these repositories is sent to clients and not stored. Concurrent
	// requests share one download.
	NoStore *bool `yaml:"no_store"`
	// OnDenied is for a tag that the upstream refuses (401 or 403) to resolve. "keep" serves
	// the stored content, as long as in an outage; "follow" removes the tag. Empty: keep.
	OnDenied string `yaml:"on_denied"`
	// Pin: content of these repositories is never evicted. KeepFor and NoStore do not apply
	// to it.
	Pin *bool `yaml:"pin"`
}

const (
	allow = "allow"
	deny  = "deny"

	keep   = "keep"
	follow = "follow"
)

// Validate returns an [*upstream.KeyError], with a key of the rule, if the rule is invalid.
func (r Rule) Validate(maxStale time.Duration) error {
	wrong := func(key, format string, args ...any) error {
		return &upstream.KeyError{Key: key, Err: fmt.Errorf(format, args...)}
	}
	if len(r.Match) == 0 {
		return wrong("match", `missing; write patterns such as ["docker.io/library/*"]`)
	}
	for i, pattern := range r.Match {
		name, tag := splitTag(pattern)
		host, canonical := registryOf(name)
		switch {
		case name == "" || !doublestar.ValidatePattern(name) || !doublestar.ValidatePattern(tag) || strings.HasSuffix(pattern, ":"):
			return wrong(fmt.Sprintf("match[%d]", i), "%q is not a pattern; write one such as docker.io/library/* or ghcr.io/acme/**:v[0-9]*", pattern)
		case host != canonical:
			return wrong(fmt.Sprintf("match[%d]", i), "%q matches no image: rules know %s as %s; write that name", pattern, host, canonical)
		case name != "**" && !strings.Contains(name, "/"):
			return wrong(fmt.Sprintf("match[%d]", i), "%q matches no image; write UPSTREAM/REPOSITORY, such as %s/**", pattern, name)
		case tag != "" && (r.Access != "" || r.KeepFor != nil || r.NoStore != nil || r.Pin != nil):
			return wrong(fmt.Sprintf("match[%d]", i), "%q has a tag, and patterns with a tag allow only fresh_for and on_denied, because clients can ask for the same content by digest; write %s", pattern, name)
		}
	}
	switch {
	case r.Access != "" && r.Access != allow && r.Access != deny:
		return wrong("access", "%q is not known; write allow or deny", r.Access)
	case r.OnDenied != "" && r.OnDenied != keep && r.OnDenied != follow:
		return wrong("on_denied", "%q is not known; write keep or follow", r.OnDenied)
	case r.FreshFor != nil && *r.FreshFor < 0:
		return wrong("fresh_for", "negative; write a duration such as 10m, or 0 to check each time")
	case r.FreshFor != nil && *r.FreshFor > maxStale:
		return wrong("fresh_for", "longer than tags.max_stale, %s; write a shorter one", maxStale)
	case r.KeepFor != nil && *r.KeepFor < 0:
		return wrong("keep_for", "negative; write a duration such as 24h, or 0 for no limit")
	case r.Pins() && r.KeepFor != nil && *r.KeepFor > 0:
		return wrong("pin", "pinned content never expires; remove keep_for or pin")
	case r.Pins() && r.NoStore != nil && *r.NoStore:
		return wrong("pin", "pinned content is stored; remove no_store or pin")
	case r.Pins() && r.Access == deny:
		return wrong("pin", "denied repositories have no content; remove access or pin")
	case r.Access == "" && r.FreshFor == nil && r.KeepFor == nil && r.NoStore == nil && r.Pin == nil && r.OnDenied == "":
		return wrong("match", "nothing is set for these images; add access, fresh_for, keep_for, no_store, on_denied or pin")
	}
	return nil
}

// registryOf returns the registry of a pattern, as it is written, and its canonical name,
// which rules are compared with. They are equal if it is no valid name.
func registryOf(pattern string) (host, canonical string) {
	host, _, _ = strings.Cut(pattern, "/")
	if canonical, ok := upstream.CanonicalName(host); ok {
		return host, canonical
	}
	return host, host
}

// Pins reports whether the rule pins what it matches.
func (r Rule) Pins() bool { return r.Pin != nil && *r.Pin }

// splitTag takes the tag off a pattern. The colon before a registry's port is
// followed by a slash.
func splitTag(pattern string) (name, tag string) {
	i := strings.LastIndexByte(pattern, ':')
	if i < 0 || strings.Contains(pattern[i:], "/") {
		return pattern, ""
	}
	return pattern[:i], pattern[i+1:]
}

// policy is what the rules say of one target.
type policy struct {
	freshFor time.Duration
	keepFor  time.Duration
	noStore  bool
	// followDenied: a tag that the upstream refuses is forgotten.
	followDenied bool
}

// policyFor applies the rules to a target. The error says which rule denies it.
func (c Config) policyFor(t target) (policy, error) {
	p := policy{freshFor: c.FreshFor}
	pinned := false
	var access, fresh, kept, store, denied, pin bool // decided
	for i, r := range c.Rules {
		if !r.Matches(t.registry.Name()+"/"+t.repo, t.tag) {
			continue
		}
		if r.Access == deny && !access {
			return policy{}, &refusal{
				code: errcode.ErrorCodeNameUnknown, status: http.StatusNotFound, result: resultDenied,
				detail: fmt.Sprintf("this mirror does not serve %s/%s: rules[%d] of its configuration denies it", t.registry.Name(), t.repo, i),
			}
		}
		access = access || r.Access != ""
		if r.FreshFor != nil && !fresh {
			fresh, p.freshFor = true, *r.FreshFor
		}
		if r.KeepFor != nil && !kept {
			kept, p.keepFor = true, *r.KeepFor
		}
		if r.NoStore != nil && !store {
			store, p.noStore = true, *r.NoStore
		}
		if r.OnDenied != "" && !denied {
			denied, p.followDenied = true, r.OnDenied == follow
		}
		if r.Pin != nil && !pin {
			pin, pinned = true, *r.Pin
		}
	}
	if pinned {
		p.keepFor, p.noStore = 0, false
	}
	return p, nil
}

// Pinned returns a function that reports whether a repository is pinned; nil: none is.
func (c Config) Pinned() func(upstream, repository string) bool {
	if !slices.ContainsFunc(c.Rules, Rule.Pins) {
		return nil
	}
	return func(upstream, repository string) bool {
		for _, r := range c.Rules {
			if r.Pin != nil && r.Matches(upstream+"/"+repository, "") {
				return *r.Pin
			}
		}
		return false
	}
}

// Matches reports whether the rule is for UPSTREAM/REPOSITORY and a tag; "": by digest.
func (r Rule) Matches(name, tag string) bool {
	for _, pattern := range r.Match {
		n, t := splitTag(pattern)
		// Validated before, so that they cannot fail; an error would not match.
		if t != "" && (tag == "" || !doublestar.MatchUnvalidated(t, tag)) {
			continue
		}
		if doublestar.MatchUnvalidated(n, name) {
			return true
		}
	}
	return false
}

// PinMatches says whether a pattern, as in [Rule], is of a repository. It is for
// [storage.Config].
func PinMatches(pattern, upstream, repository string) bool {
	ok, err := doublestar.Match(pattern, upstream+"/"+repository)
	return err == nil && ok
}
