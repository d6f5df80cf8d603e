package config

import (
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

func noVariables(string) (string, bool) { return "", false }

// parse reads a valid text with the given variables: name, value, ...
func parse(t *testing.T, text string, variables ...string) Config {
	t.Helper()
	c, err := Parse("config.yml", []byte(text), func(name string) (string, bool) {
		i := slices.Index(variables, name)
		if i < 0 {
			return "", false
		}
		return variables[i+1], true
	})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// One file per rule: what is wrong, where, and what to write instead.
func TestInvalidConfig(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("testdata/invalid-*.yml")
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, file := range files {
		name := strings.TrimSuffix(strings.TrimPrefix(file, "testdata/invalid-"), ".yml")
		seen[name] = true
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			want, ok := invalidConfigs[name]
			if !ok {
				t.Fatalf("no message for %s in invalidConfigs", file)
			}
			_, err := Load(file, noVariables)
			if err == nil {
				t.Fatal("accepted")
			}
			if got := strings.ReplaceAll(err.Error(), file, "F"); got != want {
				t.Errorf("got  %s\nwant %s", got, want)
			}
		})
	}
	for name := range invalidConfigs {
		if !seen[name] {
			t.Errorf("no file testdata/invalid-%s.yml", name)
		}
	}
}

func TestUnreadableConfig(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	large := filepath.Join(dir, "large.yml")
	if err := os.WriteFile(large, make([]byte, maxConfigSize+1), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct{ file, want string }{
		{filepath.Join(dir, "none.yml"), ": open the configuration: no such file or directory"},
		{dir, ": read the configuration: read " + dir + ": is a directory"},
		{large, ": larger than 1 MiB; this is not a configuration of cachalot"},
	} {
		if _, err := Load(test.file, noVariables); err == nil || err.Error() != test.file+test.want {
			t.Errorf("got %v, want %s", err, test.file+test.want)
		}
	}
}

func TestDefaultsAreValid(t *testing.T) {
	t.Parallel()
	c := Defaults()
	if problems := c.validate(positions{}, nil); len(problems) > 0 {
		t.Errorf("%+v", problems)
	}
	for _, text := range []string{"", "\n", "# nothing but a comment\n", "---\n", "\uFEFF", "tags:\nupstreams:\n", "tags: {}\n"} {
		if got := parse(t, text); !reflect.DeepEqual(got, Defaults()) {
			t.Errorf("%q: %+v", text, got)
		}
	}
}

func TestConfigValues(t *testing.T) {
	t.Parallel()
	c := parse(t, `
listen: 127.0.0.1:0
max_connections: "20"
storage: {path: /srv/cache, max_size: 1TiB, min_free: 10GB, high_mark: 90%, low_mark: 80%, scrub_every: 720h}
tags: {fresh_for: 0s, max_stale: 24h}
upstreams:
  docker.io:
    username: bob
    password: 0123
    ca_file:  ""
  "registry.example:5000":
    urls:
      - http://mirror.example
      - https://registry.example:5000/prefix
    aliases: [ours]
    hosts: [ours.mirror.example]
    token_realms: [auth.example, "auth.example:8443"]
    allow_addresses: [10.0.0.0/8, 192.168.1.5, "fd00::/8", "::1", 0.0.0.0/0]
`)
	if c.Listen != "127.0.0.1:0" || c.MaxConnections != 20 || c.Storage.Path != "/srv/cache" ||
		c.Storage.MaxSize.Bytes != 1<<40 || c.Storage.MinFree.Bytes != 10_000_000_000 || c.Storage.HighMark.Percent != 90 || c.Storage.LowMark.Percent != 80 ||
		c.Storage.ScrubEvery != 720*time.Hour || c.Tags.FreshFor != 0 || c.Tags.MaxStale != 24*time.Hour || c.Tags.NegativeFor != 10*time.Second {
		t.Errorf("%+v", c)
	}
	want := map[string]Upstream{
		"docker.io": {
			URL: "https://registry-1.docker.io", Username: "bob", Password: "0123",
			Aliases:     []string{"dockerhub", "index.docker.io", "registry-1.docker.io"},
			TokenRealms: []string{"auth.docker.io"}, RaceAfter: time.Second, MaxConnections: 64,
		},
		"registry.example:5000": {
			URLs:    []string{"http://mirror.example", "https://registry.example:5000/prefix"},
			Aliases: []string{"ours"}, Hosts: []string{"ours.mirror.example"},
			TokenRealms:    []string{"auth.example", "auth.example:8443"},
			AllowAddresses: []string{"10.0.0.0/8", "192.168.1.5", "fd00::/8", "::1", "0.0.0.0/0"}, RaceAfter: time.Second, MaxConnections: 64,
		},
	}
	if !reflect.DeepEqual(c.Upstreams, want) {
		t.Errorf("got  %+v\nwant %+v", c.Upstreams, want)
	}
	if got := fmt.Sprint(c.UpstreamConfig("registry.example:5000").AllowAddresses); got != "[10.0.0.0/8 192.168.1.5/32 fd00::/8 ::1/128 0.0.0.0/0]" {
		t.Error(got)
	}
}

// An empty list of aliases removes the default aliases.
func TestNoAliases(t *testing.T) {
	t.Parallel()
	if c := parse(t, "upstreams: {docker.io: {aliases: []}}"); len(c.Upstreams["docker.io"].Aliases) > 0 {
		t.Errorf("%+v", c.Upstreams)
	}
}

// A password must not go to the public realm of a registry whose URL is another registry.
func TestWellKnownRealmNeedsWellKnownURL(t *testing.T) {
	t.Parallel()
	for text, want := range map[string][]string{
		"{username: b, password: p}":                                      {"auth.docker.io"},
		"{url: https://registry-1.docker.io, username: b, password: p}":   {"auth.docker.io"},
		"{url: https://mirror.example, username: b, password: p}":         nil,
		"{urls: [https://mirror.example], username: b, password: p}":      nil,
		"{token_realms: [auth.example], username: b, password: p}":        {"auth.example"},
		"{url: https://mirror.example, token_realms: [registry.example]}": {"registry.example"},
	} {
		c := parse(t, "upstreams:\n  docker.io: "+text)
		if got := c.Upstreams["docker.io"].TokenRealms; !slices.Equal(got, want) {
			t.Errorf("%s: %q, want %q", text, got, want)
		}
	}
}

func TestVariables(t *testing.T) {
	t.Parallel()
	lookup := func(name string) (string, bool) {
		v, ok := map[string]string{
			"HUB_PASSWORD": "a: b\n${HUB_USER} # \"", "HUB_USER": "bob", "EMPTY": "", "N": "12", "_x9": "5s",
		}[name]
		return v, ok
	}
	c, err := Parse("config.yml", []byte(`
max_connections: ${N}
storage: {path: "/srv/${HUB_USER}/${EMPTY}c"}
timeouts: {dial: "${_x9}"}
upstreams:
  docker.io:
    username: ${HUB_USER}
    password: ${HUB_PASSWORD}
  ghcr.io:
    username: $HUB_USER $$ $
    password: $${HUB_USER}$$${N}
`), lookup)
	if err != nil {
		t.Fatal(err)
	}
	if c.MaxConnections != 12 || c.Storage.Path != "/srv/bob/c" || c.Timeouts.Dial != 5*time.Second {
		t.Errorf("%+v", c)
	}
	if u := c.Upstreams["docker.io"]; u.Username != "bob" || u.Password != "a: b\n${HUB_USER} # \"" {
		t.Errorf("a variable's value was read as more than a value: %+v", u)
	}
	if u := c.Upstreams["ghcr.io"]; u.Username != "$HUB_USER $$ $" || u.Password != "${HUB_USER}$${N}" {
		t.Errorf("what was escaped or no variable was expanded: %+v", u)
	}
	for _, bad := range []string{"${", "${}", "${1A}", "${A-B}", "${A:-b}", "x${ A}", "${A"} {
		if got, err := expand(bad, lookup); err == nil {
			t.Errorf("%q gives %q", bad, got)
		}
	}
}

// No error message contains a password.
func TestErrorsHoldNoSecret(t *testing.T) {
	t.Parallel()
	const canary = "hunter2canary"
	lookup := func(string) (string, bool) { return canary, true }
	for _, text := range []string{
		"upstreams: {docker.io: {username: u, password: hunter2canary, password_file: /x}}",
		"upstreams: {docker.io: {password: hunter2canary}}",
		"upstreams: {docker.io: {password: [hunter2canary]}}",
		"upstreams: {docker.io: {password: {hunter2canary}}}",
		"upstreams: {docker.io: {password: 'hunter2canary${X'}}",
		"upstreams:\n  docker.io:\n    password: ${X}",
		"upstreams:\n  docker.io:\n    password: \"hunter2canary",
		"upstreams:\n  docker.io:\n    password: @hunter2canary",
		"upstreams:\n  docker.io:\n    password: a: hunter2canary",
		"upstreams:\n  docker.io:\n    password: !hunter2canary x",
		"upstreams:\n  docker.io:\n    password: *hunter2canary",
		"upstreams:\n  docker.io:\n    passwd: hunter2canary",
		"upstreams:\n  docker.io:\n  password: hunter2canary",
		"upstreams:\n  docker.io:\n   url: https://u:hunter2canary@h\n   username: u",
		"upstreams:\n  docker.io:\n   url: https://u:hunter2canary@h h",
		"upstreams:\n  docker.io:\n   urls: ['https://h/v2?token=hunter2canary']",
		"upstreams: {docker.io: {password: hunter2canary, accounts: [{username: u, password: hunter2canary}]}}",
		"upstreams: {docker.io: {password: hunter2canary, docker_config: /x, keychain: ecr}}",
		"upstreams: {docker.io: {docker_config: testdata/docker-config-garbled.json}}", // this file contains the password
		"upstreams: {docker.io: {accounts: hunter2canary}}",
		"upstreams: {docker.io: {accounts: [hunter2canary, [hunter2canary], ]}}",
		"upstreams: {docker.io: {accounts: [{password: hunter2canary}, {username: u, password: hunter2canary, keychain: gcr}]}}",
		"upstreams: {docker.io: {accounts: [{username: u, password: hunter2canary, password_file: /x}]}}",
		"upstreams: {docker.io: {accounts: [{username: u, password: [hunter2canary]}]}}",
		"upstreams: {docker.io: {accounts: [{username: u, passwd: hunter2canary, password: hunter2canary}]}}",
		"upstreams: {docker.io: {accounts: [{username: u, password: hunter2canary, password: hunter2canary}]}}",
		"upstreams: {docker.io: {accounts: [{username: u, password: hunter2canary}, {username: u, password_file: /x}]}}",
		"upstreams: {docker.io: {accounts: {username: u, password: hunter2canary}}}",
		"upstreams:\n  docker.io:\n    accounts:\n    - username: u\n      password: *hunter2canary",
		"upstreams:\n  docker.io:\n    accounts:\n    - username: u\n      password: \"hunter2canary",
		"upstreams:\n  docker.io:\n    accounts:\n    - username: u\n     password: hunter2canary",
		"upstreams:\n  docker.io:\n    accounts: []\n    - username: u\n      password: hunter2canary",
	} {
		_, err := Parse("config.yml", []byte(text), lookup)
		if err == nil {
			t.Errorf("accepted: %s", text)
		} else if strings.Contains(err.Error(), canary) {
			t.Errorf("%s\ngives %s", text, err)
		}
	}
}

func FuzzParseConfig(f *testing.F) {
	files, err := filepath.Glob("testdata/invalid-*.yml")
	if err != nil {
		f.Fatal(err)
	}
	for _, file := range append(files, shippedConfig) {
		data, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := Parse("f", data, noVariables)
		if err == nil {
			if problems := c.validate(positions{}, nil); len(problems) > 0 {
				t.Errorf("accepted with %+v", problems)
			}
			return
		}
		for line := range strings.SplitSeq(err.Error(), "\n") {
			if line == "" {
				t.Errorf("an empty line in %q", err)
			}
		}
	})
}
