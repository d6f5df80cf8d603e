package main

import (
	"net/http"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/cachalot-registry/cachalot/upstream"
	"github.com/cachalot-registry/cachalot/upstream/upstreamtest"
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
		c, err := parseConfig("config.yml", []byte("upstreams:\n  docker.io: "+text), func(name string) (string, bool) { return "value of " + name, true })
		if err != nil {
			t.Error(err)
			continue
		}
		if got := c.upstream("docker.io").Accounts; !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %+v, want %+v", text, got, want)
		}
	}
}

// The keys that need more than this machine to be used are passed on as well.
func TestAccountKinds(t *testing.T) {
	t.Parallel()
	c := config{Upstreams: map[string]upstreamConfig{
		"beside": {DockerConfig: "f"}, "cloud": {Keychain: "ecr"},
		"listed": {Accounts: []accountConfig{{Username: "u", PasswordFile: "p"}, {DockerConfig: "f"}, {Keychain: "google"}}},
	}}
	for name, want := range map[string][]upstream.Account{
		"beside": {{DockerConfig: "f"}},
		"cloud":  {{Keychain: "ecr"}},
		"listed": {{Username: "u", PasswordFile: "p"}, {DockerConfig: "f"}, {Keychain: "google"}},
	} {
		if got := c.upstream(name).Accounts; !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %+v, want %+v", name, got, want)
		}
	}
}

func TestRaceAfter(t *testing.T) {
	t.Parallel()
	c := parse(t, "upstreams:\n  docker.io:\n  ghcr.io: {race_after: 0s}\n  quay.io: {race_after: 300ms}\n")
	for name, want := range map[string]time.Duration{"docker.io": time.Second, "ghcr.io": 0, "quay.io": 300 * time.Millisecond} {
		if got := c.upstream(name).RaceAfter; got != want {
			t.Errorf("%s: %s, want %s", name, got, want)
		}
	}
	if got := defaults().upstream("quay.io").RaceAfter; got != time.Second {
		t.Errorf("a well-known registry has %s", got)
	}
}

// A client can name a registry that is not configured, but in capitals. What
// the configured one may show is not for it.
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
	if got := c.unlisted("docker.io"); !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

// Each account is used, and whatever becomes of one, its password is in no log
// and no answer.
func TestAccountsServe(t *testing.T) {
	t.Parallel()
	const first, second = "canary-first", "canary-second"
	up := upstreamtest.New(t, upstreamtest.Options{Auth: upstreamtest.Bearer, Accounts: map[string]string{"ben": second}})
	up.AddImage("library/app", "latest", upstreamtest.NewImage(1, 1000))
	r := start(t, "log: {level: debug}\nupstreams:\n  docker.io:\n    url: "+up.URL+"\n    accounts:\n"+
		"    - {username: ann, password: "+first+"}\n    - {username: ben, password: "+second+"}\n")
	status, answer := r.read(t, r.url+"/v2/library/app/manifests/latest")
	if status != http.StatusOK {
		t.Errorf("%d %s", status, answer)
	}
	r.log.wait(t, `msg="account refused" upstream=docker.io account=\S*accounts\[0\]`)

	up.SetCredential("cleo", "changed")
	status, answer = r.read(t, r.url+"/v2/library/none/manifests/latest")
	if status != http.StatusNotFound {
		t.Errorf("%d %s", status, answer)
	}
	log, _ := r.log.now()
	for _, canary := range []string{first, second} {
		if strings.Contains(log+answer, canary) {
			t.Errorf("%s is in\n%s\n%s", canary, log, answer)
		}
	}
}
