package config

import (
	"reflect"
	"testing"
	"time"

	"github.com/cachalot-registry/cachalot/upstream"
)

func TestAccounts(t *testing.T) {
	t.Parallel()
	for text, want := range map[string][]upstream.Account{
		"{}":                            nil,
		"{username: '', password: ''}":  nil,
		"{accounts: []}":                nil,
		"{accounts: }":                  nil,
		"{username: ann, password: 01}": {{Username: "ann", Password: "01"}},
		"{accounts: [{username: ann, password: x}]}": {{Username: "ann", Password: "x"}},
		"{accounts: [{username: ann, password: x}, {password: y, username: ben}], username: ''}": {
			{Username: "ann", Password: "x"}, {Username: "ben", Password: "y"},
		},
		"{accounts: [{username: ann, password: '${X}'}]}": {{Username: "ann", Password: "value of X"}},
	} {
		c, err := Parse("config.yml", []byte("upstreams:\n  docker.io: "+text), func(name string) (string, bool) { return "value of " + name, true })
		if err != nil {
			t.Error(err)
			continue
		}
		if got := c.UpstreamConfig("docker.io").Accounts; !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %+v, want %+v", text, got, want)
		}
	}
}

// Keys that need an external service are passed to the upstream unchanged.
func TestAccountKinds(t *testing.T) {
	t.Parallel()
	c := Config{Upstreams: map[string]Upstream{
		"beside": {DockerConfig: "f"}, "cloud": {Keychain: "ecr"},
		"listed": {Accounts: []upstream.Account{{Username: "u", PasswordFile: "p"}, {DockerConfig: "f"}, {Keychain: "google"}}},
	}}
	for name, want := range map[string][]upstream.Account{
		"beside": {{DockerConfig: "f"}},
		"cloud":  {{Keychain: "ecr"}},
		"listed": {{Username: "u", PasswordFile: "p"}, {DockerConfig: "f"}, {Keychain: "google"}},
	} {
		if got := c.UpstreamConfig(name).Accounts; !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %+v, want %+v", name, got, want)
		}
	}
}

func TestRaceAfter(t *testing.T) {
	t.Parallel()
	c := parse(t, "upstreams:\n  docker.io:\n  ghcr.io: {race_after: 0s}\n  quay.io: {race_after: 300ms}\n")
	for name, want := range map[string]time.Duration{"docker.io": time.Second, "ghcr.io": 0, "quay.io": 300 * time.Millisecond} {
		if got := c.UpstreamConfig(name).RaceAfter; got != want {
			t.Errorf("%s: %s, want %s", name, got, want)
		}
	}
	if got := Defaults().UpstreamConfig("quay.io").RaceAfter; got != time.Second {
		t.Errorf("a well-known registry has %s", got)
	}
}

// An unlisted registry gets none of a configured registry's settings, even with the same name.
func TestUnlistedGetsNothing(t *testing.T) {
	t.Parallel()
	c := parse(t, `
timeouts: {dial: 3s}
upstreams:
  docker.io:
    url: http://10.0.0.1
    username: ann
    password: x
    token_realms: [auth.example]
    allow_addresses: [10.0.0.0/8]
    max_connections: 1
`)
	want := upstream.Config{
		Name: "docker.io", URLs: []string{"https://docker.io"}, Unlisted: true, MaxConnections: 64,
		Timeouts: upstream.Timeouts{Dial: 3 * time.Second, TLSHandshake: 10 * time.Second, ResponseHeader: 20 * time.Second, Progress: 30 * time.Second},
	}
	if got := c.UnlistedConfig("docker.io"); !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}
