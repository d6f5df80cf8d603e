package upstream

import (
	"errors"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/cachalot-registry/cachalot/upstream/upstreamtest"
)

// two returns two accounts, and their passwords by user.
func two() (map[string]string, []Account) {
	return map[string]string{"ann": "canary-a", "ben": "canary-b"},
		[]Account{{Username: "ann", Password: "canary-a"}, {Username: "ben", Password: "canary-b"}}
}

// pull sends the requests of a client's pull: a HEAD, and a GET of the index.
func pull(t *testing.T, r *Registry, repo string, d digest.Digest) error {
	t.Helper()
	_, headed := r.Head(t.Context(), KindManifest, repo, "latest")
	c, err := r.Open(t.Context(), KindManifest, repo, d, Span{})
	if err == nil {
		err = c.Body.Close()
	}
	return errors.Join(headed, err)
}

// users returns the users of the successful requests for manifests, in order.
func users(up *upstreamtest.Registry) []string {
	var list []string
	for _, q := range up.Requests() {
		if (q.Op == upstreamtest.HeadManifest || q.Op == upstreamtest.GetManifest) && q.Status == 200 {
			list = append(list, q.User)
		}
	}
	return list
}

// TestAccountsTakeTurns: repositories are spread over the accounts. All requests for one
// repository use one account and its one token.
func TestAccountsTakeTurns(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name string
		auth upstreamtest.Auth
	}{{"bearer", upstreamtest.Bearer}, {"basic", upstreamtest.Basic}} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			passwords, accounts := two()
			repos := []string{"a/a", "b/b", "c/c", "d/d"}
			up, img := image(t, upstreamtest.Options{Auth: tc.auth, Accounts: passwords, ExpiresIn: 300}, repos...)
			r := dialing(t, Config{URLs: []string{up.URL}, Accounts: accounts})
			for range 2 {
				for _, repo := range repos {
					if err := pull(t, r, repo, img.Index.Digest); err != nil {
						t.Fatal(err)
					}
				}
			}
			once := []string{"ann", "ann", "ben", "ben", "ann", "ann", "ben", "ben"}
			if got := users(up); !slices.Equal(got, append(once, once...)) {
				t.Errorf("asked as %q", got)
			}
			want := map[upstreamtest.Op]int{upstreamtest.Ping: 1, upstreamtest.HeadManifest: 8, upstreamtest.GetManifest: 8}
			if tc.auth == upstreamtest.Bearer {
				want[upstreamtest.Token] = len(repos)
			}
			wantCounts(t, up, want)
		})
	}
}

// TestAccountsRest: all accounts are used up to the last pull of their quotas, without a
// failure. Then no request that counts is sent. The metrics have what is left.
func TestAccountsRest(t *testing.T) {
	t.Parallel()
	const quota = 5
	passwords, accounts := two()
	up, img := image(t, upstreamtest.Options{Auth: upstreamtest.Bearer, Accounts: passwords, ExpiresIn: 300, Quota: quota})
	m := NewMetrics()
	var log journal
	r, err := New(defaults(Config{URLs: []string{up.URL}, Accounts: accounts}), m, slog.New(slog.NewTextHandler(&log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Close)
	gauges := func() (limit, remaining float64) {
		return testutil.ToFloat64(m.limit.WithLabelValues("docker.io")), testutil.ToFloat64(m.remaining.WithLabelValues("docker.io"))
	}
	for i := range 2 * quota {
		if err := pull(t, r, repo, img.Index.Digest); err != nil {
			t.Fatalf("pull %d: %v", i+1, err)
		}
	}
	counted := func() map[string]int {
		n := map[string]int{}
		for _, q := range up.Select(upstreamtest.Match{Op: upstreamtest.GetManifest}) {
			n[q.User]++
		}
		return n
	}
	if got, want := counted(), map[string]int{"ann": quota, "ben": quota}; !maps.Equal(got, want) {
		t.Errorf("counted %v, want %v", got, want)
	}
	if limit, remaining := gauges(); limit != 2*quota || remaining != 0 {
		t.Errorf("metrics say %v of %v", remaining, limit)
	}
	for range 3 {
		err := pull(t, r, repo, img.Index.Digest)
		var e *Error
		if !errors.Is(err, ErrRateLimited) || !errors.As(err, &e) || e.RetryAfter <= 0 || e.RetryAfter > time.Minute {
			t.Errorf("with nothing left: %v", err)
		}
	}
	if got := counted(); got["ann"]+got["ben"] != 2*quota {
		t.Errorf("counted %v while spent", got)
	}
	for _, want := range []string{"account=upstreams.docker.io.accounts[0].username", "account=upstreams.docker.io.accounts[1].username"} {
		if !strings.Contains(log.String(), want) {
			t.Errorf("the log does not name %s:\n%s", want, log.String())
		}
	}
	up.Refill() // the next HEAD shows it
	if err := pull(t, r, repo, img.Index.Digest); err != nil {
		t.Error(err)
	}
}

// TestAccountRefused: if the registry refuses an account, or its password cannot be read, no
// pull fails while there is another account. The log names the refused one.
func TestAccountRefused(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name string
		auth upstreamtest.Auth
		gone bool   // the password's file is removed
		want string // in the log
	}{
		{"wrong password for a token", upstreamtest.Bearer, false, "accounts[0].username"},
		{"wrong password", upstreamtest.Basic, false, "accounts[0].username"},
		{"no password file any more", upstreamtest.Bearer, true, "accounts[0].password_file"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			passwords, accounts := two()
			accounts[0].Password = "wrong-canary"
			file := filepath.Join(t.TempDir(), "password")
			if tc.gone {
				accounts[0].Password, accounts[0].PasswordFile = "", file
				if err := os.WriteFile(file, []byte("canary-a"), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			up, img := image(t, upstreamtest.Options{Auth: tc.auth, Accounts: passwords, ExpiresIn: 300})
			var log journal
			r, err := New(defaults(Config{URLs: []string{up.URL}, Accounts: accounts}), NewMetrics(), slog.New(slog.NewTextHandler(&log, nil)))
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(r.Close)
			if tc.gone {
				if err := os.Remove(file); err != nil {
					t.Fatal(err)
				}
			}
			for range 3 {
				if err := pull(t, r, repo, img.Index.Digest); err != nil {
					t.Error(err)
				}
			}
			if got := slices.Compact(users(up)); !slices.Equal(got, []string{"ben"}) {
				t.Errorf("served as %q", got)
			}
			if n := strings.Count(log.String(), "account refused"); n != 1 || !strings.Contains(log.String(), tc.want) {
				t.Errorf("%d complaints, want one that names %s:\n%s", n, tc.want, log.String())
			}
			if strings.Contains(log.String(), "canary") {
				t.Errorf("a secret in the log:\n%s", log.String())
			}
		})
	}
}

// TestAllAccountsRefused: the error is that of the registry, and each account is tried once.
func TestAllAccountsRefused(t *testing.T) {
	t.Parallel()
	up, _ := image(t, upstreamtest.Options{Auth: upstreamtest.Bearer, Accounts: map[string]string{"eve": "x"}})
	_, accounts := two()
	r := dialing(t, Config{URLs: []string{up.URL}, Accounts: accounts})
	if _, err := r.Head(t.Context(), KindManifest, repo, "latest"); !errors.Is(err, ErrDenied) {
		t.Errorf("got %v", err)
	}
	if n := up.Count(upstreamtest.Token); n != 2 {
		t.Errorf("%d token requests, want one an account", n)
	}
}

// TestExpiredPassword: ECR answers 403 to an expired password. The password is read again.
func TestExpiredPassword(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "password")
	write := func(password string) {
		if err := os.WriteFile(file, []byte(password), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("one")
	up, _ := image(t, upstreamtest.Options{Auth: upstreamtest.Basic, Username: "AWS", Password: "one"})
	r := dialing(t, Config{URLs: []string{up.URL}, Accounts: []Account{{Username: "AWS", PasswordFile: file}}})
	head(t, r, repo)
	up.SetCredential("AWS", "two")
	write("two")
	up.Fault(upstreamtest.Match{Op: upstreamtest.HeadManifest, AnyAuth: true, Times: 1},
		upstreamtest.StatusError(403, "DENIED", "Your authorization token has expired. Reauthenticate and try again."))
	head(t, r, repo)
	// If the password has not changed, a 403 is final.
	up.Fault(upstreamtest.Match{Op: upstreamtest.HeadManifest}, upstreamtest.Status(403))
	if _, err := r.Head(t.Context(), KindManifest, repo, "latest"); !errors.Is(err, ErrDenied) {
		t.Errorf("got %v", err)
	}
	wantCounts(t, up, map[upstreamtest.Op]int{upstreamtest.Ping: 1, upstreamtest.HeadManifest: 4})
}

// TestTokenServers: GitLab and docker.elastic.co have token servers on other hosts, each with
// its own path, service and lifetime of tokens.
func TestTokenServers(t *testing.T) {
	t.Parallel()
	const nested = "group/subgroup/project/image"
	for _, tc := range []struct {
		name    string
		options upstreamtest.Options
		realm   bool // token_realms has the token server
	}{
		{"GitLab", upstreamtest.Options{TokenPath: "/jwt/auth", Service: "container_registry", Username: "deploy", Password: "canary"}, true},
		{"GitLab, public project", upstreamtest.Options{TokenPath: "/jwt/auth", Service: "container_registry"}, false},
		{"docker.elastic.co", upstreamtest.Options{TokenPath: "/auth", Service: "token-service"}, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			tc.options.Auth, tc.options.TokenElsewhere = upstreamtest.Bearer, true
			if tc.options.Service == "container_registry" {
				tc.options.ExpiresIn = 300
			}
			up, img := image(t, tc.options, nested)
			cfg := Config{Name: "registry.example", URLs: []string{up.URL}}
			if tc.options.Username != "" {
				cfg.Accounts = []Account{{Username: "deploy", Password: "canary"}}
			}
			if tc.realm {
				cfg.TokenRealms = []string{up.TokenHost()}
			}
			r := dialing(t, cfg)
			for range 2 {
				if err := pull(t, r, nested, img.Index.Digest); err != nil {
					t.Fatal(err)
				}
			}
			wantCounts(t, up, map[upstreamtest.Op]int{upstreamtest.Ping: 1, upstreamtest.Token: 1, upstreamtest.HeadManifest: 2, upstreamtest.GetManifest: 2})
			asked := up.Select(upstreamtest.Match{Op: upstreamtest.Token})[0]
			if asked.Path != tc.options.TokenPath || asked.Query.Get("service") != tc.options.Service || asked.Query.Get("scope") != "repository:"+nested+":pull" {
				t.Errorf("asked %s?%s", asked.Path, asked.Query.Encode())
			}
			if asked.User != tc.options.Username {
				t.Errorf("asked as %q", asked.User)
			}
			// A new token is due after 5 minutes, or 1 if the server names no lifetime.
			a := r.endpoints[0].accounts[0]
			for _, key := range a.tokens.kept.Keys() {
				kept, _ := a.tokens.kept.Get(key)
				if life := time.Until(kept.expires); life > 5*time.Minute || life < 30*time.Second {
					t.Errorf("the token is used for %s", life)
				}
			}
		})
	}
}

// TestIdentityToken: an identity token is posted to a listed realm, and to no other.
func TestIdentityToken(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name   string
		listed bool
		want   error
	}{{"realm listed", true, nil}, {"realm unknown", false, ErrDenied}} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			up, img := image(t, upstreamtest.Options{Auth: upstreamtest.Bearer, TokenElsewhere: true, RefreshToken: "canary-refresh", AccessToken: true})
			file := filepath.Join(t.TempDir(), "config.json")
			config := `{"auths":{"` + up.Host() + `":{"identitytoken":"canary-refresh"}}}`
			if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
				t.Fatal(err)
			}
			cfg := Config{URLs: []string{up.URL}, Accounts: []Account{{DockerConfig: file}}}
			if tc.listed {
				cfg.TokenRealms = []string{up.TokenHost()}
			}
			err := pull(t, dialing(t, cfg), repo, img.Index.Digest)
			if !errors.Is(err, tc.want) {
				t.Errorf("got %v, want %v", err, tc.want)
			}
			for _, q := range up.Requests() {
				held := strings.Contains(q.Query.Encode(), "canary-refresh")
				if held != (tc.listed && q.Op == upstreamtest.Token && q.Method == "POST") || strings.Contains(q.Path, "canary") {
					t.Errorf("%s %s %s", q.Method, q.Path, q.Query.Encode())
				}
			}
		})
	}
}
