package config

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/cachalot-registry/cachalot/upstream"
)

func (v *validator) rules(c *Config) {
	for i, r := range c.Rules {
		key := fmt.Sprintf("rules[%d]", i)
		if !v.below(key) { // after a problem in a key, Validate could report a wrong one
			if at, ok := errors.AsType[*upstream.KeyError](r.Validate(c.Tags.MaxStale)); ok {
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

// pattern returns the reason why a pattern matches no image, or "": a rule with such a pattern
// would silently have no effect.
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
