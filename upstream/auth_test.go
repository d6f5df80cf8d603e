package upstream

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sony/gobreaker/v2"

	"github.com/cachalot-registry/cachalot/upstream/upstreamtest"
)

// image adds one image to repositories of a new fake.
func image(t *testing.T, o upstreamtest.Options, repos ...string) (*upstreamtest.Registry, upstreamtest.Image) {
	t.Helper()
	up := upstreamtest.New(t, o)
	img := upstreamtest.NewImage(1, 100_000)
	for _, name := range append(repos, repo) {
		up.AddImage(name, "latest", img)
	}
	return up, img
}

func wantCounts(t *testing.T, up *upstreamtest.Registry, want map[upstreamtest.Op]int) {
	t.Helper()
	got := up.Counts()
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("requests %v, want %v", got, want)
	}
}

// head sends a HEAD for the image's tag in each repository.
func head(t *testing.T, r *Registry, repos ...string) {
	t.Helper()
	for _, name := range repos {
		if _, err := r.Head(t.Context(), KindManifest, name, "latest"); err != nil {
			t.Fatalf("head %s: %v", name, err)
		}
	}
}

func TestAuthentication(t *testing.T) {
	t.Parallel()
	const user, password = "me", "canary-password"
	for _, tt := range []struct {
		name    string
		options upstreamtest.Options
		account bool
		listed  bool
		want    map[upstreamtest.Op]int // of one HEAD in each of three repositories, twice
	}{
		{name: "none", want: map[upstreamtest.Op]int{upstreamtest.HeadManifest: 6, upstreamtest.Ping: 1}},
		{
			name: "basic", options: upstreamtest.Options{Auth: upstreamtest.Basic}, account: true,
			want: map[upstreamtest.Op]int{upstreamtest.HeadManifest: 6, upstreamtest.Ping: 1},
		},
		{
			name: "anonymous token", options: upstreamtest.Options{Auth: upstreamtest.Bearer},
			want: map[upstreamtest.Op]int{upstreamtest.HeadManifest: 6, upstreamtest.Ping: 1, upstreamtest.Token: 3},
		},
		{
			name: "token for a password", options: upstreamtest.Options{Auth: upstreamtest.Bearer}, account: true,
			want: map[upstreamtest.Op]int{upstreamtest.HeadManifest: 6, upstreamtest.Ping: 1, upstreamtest.Token: 3},
		},
		{
			name: "access_token from a listed realm", options: upstreamtest.Options{Auth: upstreamtest.Bearer, AccessToken: true, TokenElsewhere: true, ExpiresIn: 300},
			account: true, listed: true,
			want: map[upstreamtest.Op]int{upstreamtest.HeadManifest: 6, upstreamtest.Ping: 1, upstreamtest.Token: 3},
		},
		{
			name: "one scope for all", options: upstreamtest.Options{Auth: upstreamtest.Bearer, Scope: "aws"},
			want: map[upstreamtest.Op]int{upstreamtest.HeadManifest: 6, upstreamtest.Ping: 1, upstreamtest.Token: 1},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			if tt.account {
				tt.options.Username, tt.options.Password = user, password
			}
			up, _ := image(t, tt.options, "a/b", "c")
			cfg := Config{URLs: []string{up.URL}}
			if tt.account {
				cfg.Accounts = []Account{{Username: user, Password: password}}
			}
			if tt.listed {
				cfg.TokenRealms = []string{up.TokenHost()}
			}
			r := dialing(t, cfg)
			head(t, r, "a/b", "c", repo)
			head(t, r, "a/b", "c", repo)
			wantCounts(t, up, tt.want)
		})
	}
}

// TestOneToken: concurrent requests with one scope cost one token request.
func TestOneToken(t *testing.T) {
	t.Parallel()
	const askers = 200
	up, _ := image(t, upstreamtest.Options{Auth: upstreamtest.Bearer})
	r := asking(t, up)
	r.transport.MaxConnsPerHost = askers
	for _, state := range []string{"first contact", "token revoked", "token unknown"} {
		if state == "token unknown" { // but the challenge is known
			r.endpoints[0].accounts[0].tokens.kept.Purge()
		}
		up.Forget()
		release, arrived := make(chan struct{}), make(chan struct{})
		s := up.Fault(upstreamtest.Match{Op: upstreamtest.Token}, upstreamtest.Arrived(arrived), upstreamtest.Pause(release))
		var wg sync.WaitGroup
		for range askers {
			wg.Go(func() {
				if _, err := r.Head(t.Context(), KindManifest, repo, "latest"); err != nil {
					t.Errorf("%s: %v", state, err)
				}
			})
		}
		<-arrived
		close(release)
		wg.Wait()
		s.Remove()
		if n := up.Count(upstreamtest.Token); n != 1 {
			t.Errorf("%s: %d token requests, want 1", state, n)
		}
		if n := up.Count(upstreamtest.HeadManifest); state != "token revoked" && n != askers {
			t.Errorf("%s: %d requests, want %d", state, n, askers)
		}
		up.RevokeTokens()
	}
}

// TestTokenOutlivesItsAsker: a caller that leaves does not cancel the token request.
func TestTokenOutlivesItsAsker(t *testing.T) {
	t.Parallel()
	up, _ := image(t, upstreamtest.Options{Auth: upstreamtest.Bearer})
	r := asking(t, up)
	release, arrived := make(chan struct{}), make(chan struct{})
	up.Fault(upstreamtest.Match{Op: upstreamtest.Token}, upstreamtest.Arrived(arrived), upstreamtest.Pause(release))
	ctx, leave := context.WithCancel(t.Context())
	left := make(chan error)
	go func() {
		_, err := r.Head(ctx, KindManifest, repo, "latest")
		left <- err
	}()
	<-arrived
	leave()
	if err := <-left; !errors.Is(err, context.Canceled) || errors.Is(err, ErrUnavailable) {
		t.Errorf("who left got %v", err)
	}
	close(release)
	head(t, r, repo)
	if n := up.Count(upstreamtest.Token); n != 1 {
		t.Errorf("%d token requests, want 1", n)
	}
}

func TestTokenExpires(t *testing.T) {
	t.Parallel()
	up, _ := image(t, upstreamtest.Options{Auth: upstreamtest.Bearer, ExpiresIn: 300})
	r := asking(t, up)
	head(t, r, repo, repo)
	a := r.endpoints[0].accounts[0]
	for _, key := range a.tokens.kept.Keys() {
		old, _ := a.tokens.kept.Get(key)
		if left := time.Until(old.expires); left < 250*time.Second || left > 270*time.Second {
			t.Errorf("a token of 300 s is used for %s", left)
		}
		a.tokens.kept.Add(key, token{value: old.value, expires: time.Now().Add(-time.Second)})
	}
	head(t, r, repo)
	wantCounts(t, up, map[upstreamtest.Op]int{upstreamtest.HeadManifest: 3, upstreamtest.Ping: 1, upstreamtest.Token: 2})
}

// TestTokenRevoked: a 401 in the middle costs one token and one more request.
func TestTokenRevoked(t *testing.T) {
	t.Parallel()
	up, img := image(t, upstreamtest.Options{Auth: upstreamtest.Bearer})
	r := asking(t, up)
	head(t, r, repo)
	up.RevokeTokens()
	up.Forget()
	read(t, r, KindBlob, img.Config.Digest, 0)
	wantCounts(t, up, map[upstreamtest.Op]int{upstreamtest.GetBlob: 2, upstreamtest.Token: 1})

	// If the registry refuses a second token too, the refusal is final.
	up.Forget()
	challenge := fmt.Sprintf(`Bearer realm=%q,service="upstreamtest",scope="repository:%s:pull"`, up.TokenURL, repo)
	up.Fault(upstreamtest.Match{Op: upstreamtest.GetBlob}, upstreamtest.Status(401, "WWW-Authenticate", challenge))
	_, err := r.Open(t.Context(), KindBlob, repo, img.Config.Digest, Span{})
	if !errors.Is(err, ErrDenied) {
		t.Errorf("a registry that refuses every token: %v", err)
	}
	wantCounts(t, up, map[upstreamtest.Op]int{upstreamtest.GetBlob: 2, upstreamtest.Token: 1})
}

func TestChallengeChanges(t *testing.T) {
	t.Parallel()
	up, _ := image(t, upstreamtest.Options{Auth: upstreamtest.Bearer}, "a/b", "c")
	r := asking(t, up)
	head(t, r, repo)
	up.Forget()
	up.SetChallenge("", "renamed")
	head(t, r, repo, "a/b")
	wantCounts(t, up, map[upstreamtest.Op]int{upstreamtest.HeadManifest: 3, upstreamtest.Token: 2})

	// The old token server fails: the mirror asks the registry for a new challenge.
	other := upstreamtest.New(t, upstreamtest.Options{Auth: upstreamtest.Bearer})
	up.Fault(upstreamtest.Match{Op: upstreamtest.Token}, upstreamtest.Status(503))
	up.SetChallenge(other.TokenURL, "renamed")
	up.Forget()
	if _, err := r.Head(t.Context(), KindManifest, "c", "latest"); !errors.Is(err, ErrDenied) {
		t.Errorf("a token of another server: %v", err) // the fake accepts only its own tokens
	}
	wantCounts(t, up, map[upstreamtest.Op]int{upstreamtest.HeadManifest: 2, upstreamtest.Token: 1})
	if n := other.Count(upstreamtest.Token); n != 1 {
		t.Errorf("the new token server was asked %d times, want once", n)
	}
}

// TestPasswordFile: a rotated password is used without a restart.
func TestPasswordFile(t *testing.T) {
	t.Parallel()
	for _, auth := range []upstreamtest.Auth{upstreamtest.Basic, upstreamtest.Bearer} {
		file := filepath.Join(t.TempDir(), "password")
		write := func(password string) {
			if err := os.WriteFile(file, []byte(password+"\n"), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		write("one")
		up, _ := image(t, upstreamtest.Options{Auth: auth, Username: "me", Password: "one"})
		r := dialing(t, Config{URLs: []string{up.URL}, Accounts: []Account{{Username: "me", PasswordFile: file}}})
		head(t, r, repo)
		write("two")
		up.SetCredential("me", "two")
		up.RevokeTokens()
		head(t, r, repo)
		if err := os.Remove(file); err != nil {
			t.Fatal(err)
		}
		up.SetCredential("me", "three")
		up.RevokeTokens()
		_, err := r.Head(t.Context(), KindManifest, repo, "latest")
		if !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), "upstreams.docker.io.password_file") {
			t.Errorf("auth %d: without the file: %v", auth, err)
		}
	}
}

func TestTokenServerFails(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name   string
		fault  upstreamtest.Fault
		want   error
		within string // in the message
	}{
		{"401", upstreamtest.StatusError(401, "UNAUTHORIZED", "bad password"), ErrDenied, "bad password"},
		{"403", upstreamtest.Status(403), ErrDenied, ""},
		{"429", upstreamtest.Status(429, "Retry-After", "7"), ErrRateLimited, ""},
		{"500", upstreamtest.Status(500), ErrUnavailable, ""},
		{"404", upstreamtest.Status(404), ErrUnavailable, ""},
		{"redirect to what gives none", upstreamtest.Redirect("/elsewhere"), ErrDenied, ""},
		{"redirect loop", upstreamtest.RedirectLoop(), ErrUnavailable, "redirects"},
		{"garbage", upstreamtest.Body("text/html", []byte("<html>")), ErrUnavailable, "not a JSON"},
		{"no token", upstreamtest.Body("application/json", []byte(`{}`)), ErrUnavailable, "no token"},
		{"unprintable token", upstreamtest.Body("application/json", []byte(`{"token":"a\r\nX: y"}`)), ErrUnavailable, "not printable"},
		{"endless", upstreamtest.Endless(), ErrUnavailable, "longer than"},
		{"cut", upstreamtest.CutAfter(3), ErrUnavailable, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			up, _ := image(t, upstreamtest.Options{Auth: upstreamtest.Bearer})
			up.Fault(upstreamtest.Match{Op: upstreamtest.Token}, tt.fault)
			r := asking(t, up)
			_, err := r.Head(t.Context(), KindManifest, repo, "latest")
			if !errors.Is(err, tt.want) || errors.Is(err, ErrTimeout) || !strings.Contains(err.Error(), tt.within) {
				t.Fatalf("got %v, want %v with %q", err, tt.want, tt.within)
			}
			var e *Error
			if tt.name == "429" && (!errors.As(err, &e) || e.RetryAfter != 7*time.Second) {
				t.Errorf("retry after: %+v", e)
			}
			if n, most := up.Count(upstreamtest.Token), maxTries; n > most {
				t.Errorf("%d token requests, want at most %d", n, most)
			}
		})
	}
}

// TestTokenServerDown: failures of the token server open its own breaker only.
func TestTokenServerDown(t *testing.T) {
	t.Parallel()
	up, _ := image(t, upstreamtest.Options{Auth: upstreamtest.Bearer, TokenElsewhere: true})
	up.TokenDown()
	r := asking(t, up)
	for range breakerFailures {
		_, err := r.Head(t.Context(), KindManifest, repo, "latest")
		if !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), "token") || !strings.Contains(err.Error(), up.TokenHost()) {
			t.Errorf("got %v", err)
		}
	}
	if b, _ := r.breakers.origin("http://" + up.TokenHost()); b.State() != gobreaker.StateOpen {
		t.Errorf("the token server's breaker is %s", b.State())
	}
	if b, _ := r.breakers.origin(r.endpoints[0].origin); b.State() != gobreaker.StateClosed || !r.endpoints[0].up() {
		t.Errorf("the registry's breaker is %s", b.State())
	}
}

func TestTokenServerSilent(t *testing.T) {
	t.Parallel()
	for name, fault := range map[string]upstreamtest.Fault{
		"no answer": upstreamtest.BlackHole(), "no end": upstreamtest.StallAfter(3, nil),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			up, _ := image(t, upstreamtest.Options{Auth: upstreamtest.Bearer})
			up.Fault(upstreamtest.Match{Op: upstreamtest.Token}, fault)
			r := dialing(t, Config{URLs: []string{up.URL}, Timeouts: Timeouts{Dial: never, TLSHandshake: never, ResponseHeader: 30 * time.Millisecond, Progress: never}})
			if _, err := r.Head(t.Context(), KindManifest, repo, "latest"); !errors.Is(err, ErrTimeout) || !errors.Is(err, ErrUnavailable) {
				t.Errorf("got %v", err)
			}
		})
	}
}

// TestRealm: which token servers get the credential.
func TestRealm(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name      string
		elsewhere bool
		listed    func(up *upstreamtest.Registry) string
		tls       bool
		realm     func(up *upstreamtest.Registry) string
		sent      bool
		asked     int // token requests
		want      error
		hint      bool
	}{
		{name: "own host", sent: true, asked: 1},
		{name: "other port, not listed", elsewhere: true, asked: 1, want: ErrDenied, hint: true},
		{name: "other port, listed", elsewhere: true, listed: (*upstreamtest.Registry).TokenHost, sent: true, asked: 1},
		{name: "other port, only the host listed", elsewhere: true, listed: func(*upstreamtest.Registry) string { return "127.0.0.1" }, asked: 1, want: ErrDenied, hint: true},
		{
			name: "http realm of an https registry", tls: true, want: ErrInvalid,
			realm: func(up *upstreamtest.Registry) string { return strings.Replace(up.TokenURL, "https:", "http:", 1) },
		},
		{
			name: "user in the realm", want: ErrInvalid,
			realm: func(up *upstreamtest.Registry) string { return strings.Replace(up.TokenURL, "//", "//x:y@", 1) },
		},
		{name: "no URL", want: ErrInvalid, realm: func(*upstreamtest.Registry) string { return "file:///etc/passwd" }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			up, _ := image(t, upstreamtest.Options{
				Auth: upstreamtest.Bearer, Username: "me", Password: "canary", TokenElsewhere: tt.elsewhere, TLS: tt.tls,
			})
			cfg := Config{URLs: []string{up.URL}, Accounts: []Account{{Username: "me", Password: "canary"}}, CAFile: up.CAFile}
			if tt.listed != nil {
				cfg.TokenRealms = []string{tt.listed(up)}
			}
			if tt.realm != nil {
				up.SetChallenge(tt.realm(up), "")
			}
			_, err := dialing(t, cfg).Head(t.Context(), KindManifest, repo, "latest")
			if !errors.Is(err, tt.want) {
				t.Fatalf("got %v, want %v", err, tt.want)
			}
			if hint := fmt.Sprintf("upstreams.docker.io.token_realms: [%q]", up.TokenHost()); tt.hint != (err != nil && strings.Contains(err.Error(), hint)) {
				t.Errorf("%v does not say, or says without need: %s", err, hint)
			}
			asked := up.Select(upstreamtest.Match{Op: upstreamtest.Token})
			if len(asked) != tt.asked {
				t.Errorf("%d token requests, want %d", len(asked), tt.asked)
			}
			for _, q := range asked {
				if sent := q.Header.Get("Authorization") != ""; sent != tt.sent {
					t.Errorf("credential sent: %v, want %v", sent, tt.sent)
				}
			}
		})
	}
}

// TestNoCredential: Basic without a password is an error that names the key.
func TestNoCredential(t *testing.T) {
	t.Parallel()
	up, _ := image(t, upstreamtest.Options{Auth: upstreamtest.Basic, Username: "me", Password: "canary"})
	_, err := asking(t, up).Head(t.Context(), KindManifest, repo, "latest")
	if !errors.Is(err, ErrDenied) || !strings.Contains(err.Error(), "upstreams.docker.io.username") {
		t.Errorf("got %v", err)
	}
	wantCounts(t, up, map[upstreamtest.Op]int{upstreamtest.HeadManifest: 1, upstreamtest.Ping: 1})
}

func TestParseToken(t *testing.T) {
	t.Parallel()
	now := time.Now().Truncate(time.Second)
	for _, tt := range []struct {
		answer string
		value  string
		life   time.Duration
	}{
		{`{"token":"a"}`, "a", 54 * time.Second},
		{`{"token":"a","access_token":"b","expires_in":300}`, "a", 270 * time.Second},
		{`{"access_token":"b","expires_in":"300"}`, "b", 270 * time.Second},
		{`{"token":"a","expires_in":36000}`, "a", 36000*time.Second - 30*time.Second},
		{`{"token":"a","expires_in":1e300}`, "a", 24*time.Hour - 30*time.Second},
		{`{"token":"a","expires_in":-5}`, "a", 54 * time.Second},
		{`{"token":"a","expires_in":300,"issued_at":"` + now.Add(-100*time.Second).Format(time.RFC3339) + `"}`, "a", 180 * time.Second},
		{`{"token":"a","expires_in":300,"issued_at":"` + now.Add(time.Hour).Format(time.RFC3339) + `"}`, "a", 270 * time.Second},
		{`{"token":"a","expires_in":300,"issued_at":"yesterday"}`, "a", 270 * time.Second},
		{`{"token":"a","expires_in":300,"issued_at":"` + now.Add(-time.Hour).Format(time.RFC3339) + `"}`, "a", 0},
		{`{"expires_in":300}`, "", 0},
		{`{"token":"` + strings.Repeat("a", maxToken+1) + `"}`, "", 0},
		{`[]`, "", 0},
	} {
		before := time.Now()
		got, err := parseToken([]byte(tt.answer), now)
		if got.value != tt.value || (err == nil) != (tt.value != "") {
			t.Errorf("%.80s: %q, %v", tt.answer, got.value, err)
			continue
		}
		if life := got.expires.Sub(before); err == nil && (life < tt.life || life > tt.life+time.Minute/6) {
			t.Errorf("%.80s: lives %s, want %s", tt.answer, life, tt.life)
		}
	}
	if at := serverTime(http.Header{"Date": {now.UTC().Format(http.TimeFormat)}}); !at.Equal(now) {
		t.Errorf("server time %s, want %s", at, now)
	}
}
