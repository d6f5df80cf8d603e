package config

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/cachalot-registry/cachalot/proxy"
	"github.com/cachalot-registry/cachalot/upstream"
)

// Rule has settings for the images that match one of its patterns. A later rule may set
// what it does not set.
type Rule struct {
	// Match are patterns of UPSTREAM/REPOSITORY, optionally with :TAG.
	Match []string `yaml:"match"`
	// Access is "allow" or "deny".
	Access string `yaml:"access"`
	// FreshFor replaces tags.fresh_for.
	FreshFor *time.Duration `yaml:"fresh_for"`
	// KeepFor is how long after its last use content is evicted; 0: no limit.
	KeepFor *time.Duration `yaml:"keep_for"`
	// NoStore: content is sent to clients and not stored.
	NoStore *bool `yaml:"no_store"`
	// OnDenied is keep or follow, for a tag that the upstream refuses.
	OnDenied string `yaml:"on_denied"`
	// Pin: content is never evicted.
	Pin *bool `yaml:"pin"`
}

func (v *validator) rules(c *Config) {
	for i, r := range c.Rules {
		key := fmt.Sprintf("rules[%d]", i)
		if !v.below(key) { // what is left of it would be judged wrongly
			if at, ok := errors.AsType[*upstream.KeyError](proxy.Rule(r).Validate(c.Tags.MaxStale)); ok {
				v.fail(at.Err.Error(), join(key, at.Key), key)
			}
		}
		for j, pattern := range r.Match {
			if message := c.pattern(pattern); message != "" {
				v.fail(message, fmt.Sprintf("%s.match[%d]", key, j))
			}
		}
	}
}

// pattern says what is wrong with the images that a pattern is for, or nothing:
// a rule that matches no image would silently have no effect.
func (c *Config) pattern(pattern string) string {
	name, repository, ok := strings.Cut(pattern, "/")
	if !ok || strings.ContainsAny(name, `*?[]{}\`) {
		return ""
	}
	if _, ok := c.Upstreams[name]; ok {
		if name == "docker.io" && !strings.Contains(repository, "/") && !strings.Contains(repository, "**") {
			return fmt.Sprintf("%q matches no image: Docker Hub's official images are below library; write docker.io/library/%s", pattern, repository)
		}
		return ""
	}
	names := slices.Sorted(maps.Keys(c.Upstreams))
	for _, n := range names {
		if slices.Contains(c.Upstreams[n].Aliases, name) {
			return fmt.Sprintf("%s is an alias; write the registry's own name, %s/%s", name, n, repository)
		}
	}
	if c.UnlistedUpstreams == "allow" && registryName(name) == "" {
		return ""
	}
	if meant := suggestion(name, names, nil); meant != "" {
		return fmt.Sprintf("%s is not among the upstreams; did you mean %s/%s?", name, meant, repository)
	}
	return fmt.Sprintf("%q does not begin with one of the upstreams; write one of %s before the first slash", pattern, strings.Join(names, ", "))
}
