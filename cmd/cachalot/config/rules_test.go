package config

import (
	"reflect"
	"testing"
	"time"

	"github.com/cachalot-registry/cachalot/proxy"
)

// An absent setting differs from 0 and false.
func TestRules(t *testing.T) {
	t.Parallel()
	c := parse(t, `
rules:
- match: ["docker.io/acme/**", 'ghcr.io/*/[a-z]*:{v1,v2}.*']
  fresh_for: 24h
- {match: [ "**" ], access: allow, fresh_for: 0s, keep_for: 0s, no_store: False, pin: true}
-
  access: "${ACCESS}"
  match:
  - "*/private/**"
  keep_for: "90m"
  no_store: true
`[1:], "ACCESS", "deny")
	day, none, kept, no, yes := 24*time.Hour, time.Duration(0), 90*time.Minute, false, true
	want := []proxy.Rule{
		{Match: []string{"docker.io/acme/**", "ghcr.io/*/[a-z]*:{v1,v2}.*"}, FreshFor: &day},
		{Match: []string{"**"}, Access: "allow", FreshFor: &none, KeepFor: &none, NoStore: &no, Pin: &yes},
		{Match: []string{"*/private/**"}, Access: "deny", KeepFor: &kept, NoStore: &yes},
	}
	if got := c.ProxyConfig().Rules; !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	for _, text := range []string{"rules:\n", "rules: []\n", "rules:\n#- match: [x]\n"} {
		if got := parse(t, text).ProxyConfig().Rules; got != nil {
			t.Errorf("%q: %+v", text, got)
		}
	}
}

// A pattern that can match a registry is accepted.
func TestPatterns(t *testing.T) {
	t.Parallel()
	const upstreams = "upstreams: {docker.io: {aliases: [hub]}, 'registry.example:5000': {url: 'https://registry.example:5000'}}\n"
	for _, pattern := range []string{
		"docker.io/**", "docker.io/library/alpine", "docker.io/*/*", "docker.io/{library,acme}/*", "docker.io/**:latest", "docker.io/acme/**/x:v[0-9]*",
		"registry.example:5000/app", "registry.example:5000/team/app:1.2", "*/app", "**", "**:latest", "**/app", "*.io/acme/**",
		"{docker.io,registry.example:5000}/acme/**", "[a-d]*/acme/**", `docker\.io/acme/**`,
	} {
		parse(t, upstreams+"rules: [{match: ['"+pattern+"'], fresh_for: 1h}]\n")
	}
	for _, pattern := range []string{"quay.io/acme/**", "localhost:5000/app", "registry.example/app"} {
		text := upstreams + "rules: [{match: ['" + pattern + "'], fresh_for: 1h}]\n"
		if _, err := Parse("f", []byte(text), noVariables); err == nil {
			t.Errorf("%s is accepted where unlisted registries are denied", pattern)
		}
		parse(t, "unlisted_upstreams: allow\n"+text)
	}
}

// A given list replaces the default list.
func TestItemsReplaceDefaults(t *testing.T) {
	t.Parallel()
	c := Config{Rules: []proxy.Rule{{Access: "deny"}, {Access: "deny"}}}
	d := &decoder{at: positions{}}
	d.document([]byte("rules: [{access: allow}]"), &c)
	if len(d.problems) > 0 || len(c.Rules) != 1 || c.Rules[0].Access != "allow" {
		t.Errorf("%+v %+v", c.Rules, d.problems)
	}
}
