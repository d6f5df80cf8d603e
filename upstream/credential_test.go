package upstream

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
)

// canary is a secret that no error may show.
const canary = "canary-5ecret"

// sourceOf makes the credentials of a for a registry at base.
func sourceOf(tb testing.TB, a Account, base string) credentials {
	tb.Helper()
	c, err := trySource(tb, a, "registry.test", base, nil)
	if err != nil {
		tb.Fatal(err)
	}
	return c
}

func trySource(tb testing.TB, a Account, registry, base string, rt http.RoundTripper) (credentials, error) {
	tb.Helper()
	u, err := parseBase(base)
	if err != nil {
		tb.Fatal(err)
	}
	return newCredentials(a, registry, u, rt, func(error, bool) {})
}

func wantGot(t *testing.T, c credentials, want authn.AuthConfig) {
	t.Helper()
	if got, err := c.get(t.Context()); err != nil || got != want {
		t.Errorf("got %+v, %v; want %+v", got, err, want)
	}
}

// wantFailed checks that get fails, with want in the error and no secret.
func wantFailed(t *testing.T, c credentials, want ...string) {
	t.Helper()
	got, err := c.get(t.Context())
	if err == nil || got != (authn.AuthConfig{}) {
		t.Fatalf("got %+v, %v; want an error", got, err)
	}
	wantTold(t, err, want...)
}

func wantTold(t *testing.T, err error, want ...string) {
	t.Helper()
	if err == nil {
		t.Fatal("no error")
	}
	for _, w := range want {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("%q does not say %q", err, w)
		}
	}
	for e := err; e != nil; e = errors.Unwrap(e) {
		if strings.Contains(e.Error(), canary) || strings.ContainsAny(e.Error(), "\n\r") {
			t.Errorf("a secret or a line break in %q", e)
		}
	}
}

func write(tb testing.TB, file, content string) string {
	tb.Helper()
	if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
		tb.Fatal(err)
	}
	return file
}

func TestCredentialValidate(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	secret := write(t, filepath.Join(dir, "secret"), canary+"\n")
	docker := write(t, filepath.Join(dir, "config.json"), "{}")
	broken := write(t, filepath.Join(dir, "broken.json"), `{"auths": {"r.test": {"auth": "`+canary+`"}}}`)
	for _, tc := range []struct {
		name      string
		account   Account
		key, want string // want "": no error
	}{
		{"nothing", Account{}, "username", "no account; write a username with password or password_file"},
		{"password", Account{Username: "a", Password: canary}, "", ""},
		{"password_file", Account{Username: "a", PasswordFile: secret}, "password_file", ""},
		{"docker_config", Account{DockerConfig: docker}, "docker_config", ""},
		{"ecr", Account{Keychain: "ecr"}, "", ""},
		{"google", Account{Keychain: "google"}, "", ""},
		{"azure", Account{Keychain: "azure"}, "", ""},
		{"no password", Account{Username: "a"}, "username", "without a password"},
		{"no username", Account{Password: canary}, "username", "missing, although a password is given"},
		{"no username, file", Account{PasswordFile: secret}, "username", "missing, although a password is given"},
		{"colon", Account{Username: "a:b", Password: canary}, "username", "RFC 7617"},
		{"two passwords", Account{Username: "a", Password: canary, PasswordFile: secret}, "password_file", "given along with password"},
		{"no such password_file", Account{Username: "a", PasswordFile: "/no/such"}, "password_file", "cannot be read: no such file"},
		{"username and docker_config", Account{Username: "a", DockerConfig: docker}, "docker_config", "given along with username; keep one of the two"},
		{"password and docker_config", Account{Password: canary, DockerConfig: docker}, "docker_config", "given along with password"},
		{"docker_config and keychain", Account{DockerConfig: docker, Keychain: "ecr"}, "keychain", "given along with docker_config"},
		{"no such docker_config", Account{DockerConfig: "/no/such"}, "docker_config", "cannot be read: no such file"},
		{"broken docker_config", Account{DockerConfig: broken}, "docker_config", "not the base64"},
		{"keychain", Account{Keychain: "aws"}, "keychain", "not known; write one of ecr, google, azure"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			key, err := tc.account.validate()
			if tc.want == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			if key != tc.key {
				t.Errorf("it is about %q", key)
			}
			wantTold(t, err, tc.want)
		})
	}
}

// TestCredentialPassword: a password's file is read again each time.
func TestCredentialPassword(t *testing.T) {
	t.Parallel()
	wantGot(t, sourceOf(t, Account{Username: "a", Password: "b"}, "https://r.test"), authn.AuthConfig{Username: "a", Password: "b"})

	file := write(t, filepath.Join(t.TempDir(), "password"), "one\n")
	c := sourceOf(t, Account{Username: "a", PasswordFile: file}, "https://r.test")
	wantGot(t, c, authn.AuthConfig{Username: "a", Password: "one"})
	write(t, file, "two")
	wantGot(t, c, authn.AuthConfig{Username: "a", Password: "two"})
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	wantFailed(t, c, "the password: cannot be read: ")
}

// TestCredentialBlockedFile: a file that blocks, as on a dead NFS server, does not block a
// caller whose context has ended, and is not opened twice.
func TestCredentialBlockedFile(t *testing.T) {
	t.Parallel()
	fifo := filepath.Join(t.TempDir(), "password")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	c := sourceOf(t, Account{Username: "a", PasswordFile: fifo}, "https://r.test").(*shared)
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	for range 3 {
		if _, err := c.get(ended); !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
	}
	q, _ := c.join(granted{})
	write(t, fifo, "late")
	<-q.done
	if q.err != nil || q.answer.Password != "late" { // a second reader would have taken some of it, or all
		t.Errorf("got %+v, %v", q.answer, q.err)
	}
}

// scripted is an asker with scripted answers.
type scripted struct {
	mu      sync.Mutex // guards asked and serves
	asked   int
	serves  []bool // the arguments of failed
	answers chan func(context.Context) (granted, error)
}

func (s *scripted) ask(ctx context.Context) (granted, error) {
	s.mu.Lock()
	s.asked++
	s.mu.Unlock()
	return (<-s.answers)(ctx)
}

func (s *scripted) failed(_ error, serves bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.serves = append(s.serves, serves)
}

func (s *scripted) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.asked
}

func (s *scripted) will(g granted, err error) {
	s.answers <- func(context.Context) (granted, error) { return g, err }
}

func until(expires time.Time, password string) granted {
	return lasting(authn.AuthConfig{Password: password}, expires, time.Hour)
}

// TestCredentialShared: concurrent callers share one request.
func TestCredentialShared(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := &scripted{answers: make(chan func(context.Context) (granted, error))}
		c := &shared{ask: s.ask, failed: s.failed}
		var all sync.WaitGroup
		for range 100 {
			all.Go(func() { wantGot(t, c, authn.AuthConfig{Password: "a"}) })
		}
		synctest.Wait()
		s.will(granted{AuthConfig: authn.AuthConfig{Password: "a"}}, nil)
		all.Wait()
		if s.count() != 1 {
			t.Errorf("asked %d times", s.count())
		}
		go s.will(granted{AuthConfig: authn.AuthConfig{Password: "b"}}, nil)
		wantGot(t, c, authn.AuthConfig{Password: "b"}) // a credential without a lifetime is not stored
	})
}

// TestCredentialEnded: a request is canceled when its last caller leaves, not its first. A
// later caller gets its own request.
func TestCredentialEnded(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := &scripted{answers: make(chan func(context.Context) (granted, error), 1)}
		c := &shared{ask: s.ask, failed: s.failed}
		ended := make(chan struct{})
		proceed := make(chan struct{})
		s.answers <- func(ctx context.Context) (granted, error) {
			<-ctx.Done()
			close(ended)
			<-proceed
			return granted{}, ctx.Err()
		}
		first, cancelFirst := context.WithCancel(t.Context())
		second, cancelSecond := context.WithCancel(t.Context())
		var both sync.WaitGroup
		for _, ctx := range []context.Context{first, second} {
			both.Go(func() {
				if _, err := c.get(ctx); !errors.Is(err, context.Canceled) {
					t.Errorf("got %v", err)
				}
			})
		}
		synctest.Wait()
		cancelFirst()
		synctest.Wait()
		select {
		case <-ended:
			t.Error("it ended with the first")
		default:
		}
		cancelSecond()
		both.Wait()
		<-ended

		var third sync.WaitGroup
		third.Go(func() { wantGot(t, c, authn.AuthConfig{Password: "a"}) })
		synctest.Wait()
		if s.count() != 1 {
			t.Errorf("asked %d times while the first question hung", s.count())
		}
		close(proceed)
		s.will(granted{AuthConfig: authn.AuthConfig{Password: "a"}}, nil)
		third.Wait()
		if s.count() != 2 {
			t.Errorf("asked %d times", s.count())
		}
	})
}

// TestCredentialHangs: a request without an answer ends after maxAsking.
func TestCredentialHangs(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := &shared{ask: func(ctx context.Context) (granted, error) {
			<-ctx.Done()
			return granted{}, ctx.Err()
		}, failed: func(error, bool) {}}
		begun := time.Now()
		if _, err := c.get(t.Context()); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v", err)
		}
		if took := time.Since(begun); took != maxAsking {
			t.Errorf("it took %s", took)
		}
	})
}

// TestCredentialKept: a credential is stored while it is valid, and renewed early. If the
// renewal fails, the old one is still used.
func TestCredentialKept(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := &scripted{answers: make(chan func(context.Context) (granted, error), 1)}
		c := &shared{ask: s.ask, failed: s.failed}
		wantAsked := func(n int) {
			t.Helper()
			if s.count() != n {
				t.Errorf("asked %d times, want %d", s.count(), n)
			}
		}
		begun := time.Now()
		s.will(until(begun.Add(12*time.Hour), "a"), nil)
		wantGot(t, c, authn.AuthConfig{Password: "a"})
		time.Sleep(11*time.Hour - time.Second)
		wantGot(t, c, authn.AuthConfig{Password: "a"})
		wantAsked(1)

		time.Sleep(time.Second) // an hour before it expires
		s.will(granted{}, errors.New("not now"))
		wantGot(t, c, authn.AuthConfig{Password: "a"})
		wantAsked(2)
		wantGot(t, c, authn.AuthConfig{Password: "a"})
		wantAsked(2) // no second try at once
		time.Sleep(renewalPause)
		hung := time.Now()
		s.answers <- func(ctx context.Context) (granted, error) {
			<-ctx.Done()
			return granted{}, ctx.Err()
		}
		wantGot(t, c, authn.AuthConfig{Password: "a"})
		if took := time.Since(hung); took != maxRenewal {
			t.Errorf("a renewal that hung held the caller for %s", took)
		}
		wantAsked(3)

		time.Sleep(time.Hour) // it has expired
		s.will(granted{}, errors.New("not now"))
		wantFailed(t, c, "not now")
		s.will(until(time.Now().Add(12*time.Hour), "b"), nil)
		wantGot(t, c, authn.AuthConfig{Password: "b"})
		wantAsked(5)

		time.Sleep(11*time.Hour + time.Minute)
		s.will(until(time.Now().Add(12*time.Hour), "c"), nil)
		wantGot(t, c, authn.AuthConfig{Password: "c"})
		wantGot(t, c, authn.AuthConfig{Password: "c"})
		wantAsked(6)
		if want := []bool{true, true, false}; !slices.Equal(s.serves, want) {
			t.Errorf("failures, and whether the old one served: %v, want %v", s.serves, want)
		}
	})
}

// TestCredentialOnce: a caller finds no stored credential, then the answer to another caller's
// request arrives. The first caller does not ask again.
func TestCredentialOnce(t *testing.T) {
	t.Parallel()
	for range 2000 {
		var asked atomic.Int64
		c := &shared{ask: func(context.Context) (granted, error) {
			asked.Add(1)
			return lasting(authn.AuthConfig{Username: "u", Password: "p"}, time.Now().Add(time.Hour), time.Minute), nil
		}}
		together(t, c, authn.AuthConfig{Username: "u", Password: "p"})
		if n := asked.Load(); n != 1 {
			t.Fatalf("asked %d times", n)
		}
	}
}

// TestCredentialShortLived: a credential that lives less than the margin is renewed after half
// of its life. An expired one is not stored.
func TestCredentialShortLived(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		now := time.Now()
		if g := until(now.Add(20*time.Minute), ""); !g.renew.Equal(now.Add(10 * time.Minute)) {
			t.Errorf("renewed at %s", g.renew)
		}
		s := &scripted{answers: make(chan func(context.Context) (granted, error), 1)}
		c := &shared{ask: s.ask, failed: s.failed}
		for n := range 3 {
			s.will(until(now.Add(-time.Minute), "a"), nil)
			wantGot(t, c, authn.AuthConfig{Password: "a"})
			if s.count() != n+1 {
				t.Errorf("asked %d times", s.count())
			}
		}
	})
}

// TestMisplacedSecret: a secret in the place of a file or a keychain is in no error.
func TestMisplacedSecret(t *testing.T) {
	t.Parallel()
	for _, secret := range []string{"hunter2canary", "/canary/with/slashes", "canary\nin two lines", "canary\x00"} {
		for _, a := range []Account{{Username: "me", PasswordFile: secret}, {DockerConfig: secret}, {Keychain: secret}} {
			_, err := New(defaults(Config{URLs: []string{"https://registry.example"}, Accounts: []Account{a}}), NewMetrics(), slog.New(slog.DiscardHandler))
			if err == nil || strings.Contains(err.Error(), "canary") {
				t.Errorf("%+v: %v", a, err)
			}
		}
	}
}
