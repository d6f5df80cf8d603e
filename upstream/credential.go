package upstream

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"

	"github.com/cachalot-registry/cachalot/task"
)

// credentials returns an account's credential for a registry; an empty one if it has none
// for it. It may read a file, run a program or send a request to a cloud, and returns when
// ctx ends, even if those do not. Its errors contain no secret, and nothing that a file, a
// program's stdout or a library's error quotes.
type credentials interface {
	get(ctx context.Context) (authn.AuthConfig, error)
}

// validate checks what can be checked before the registry is known. key is the wrong one,
// and the error says what to write instead.
func (a Account) validate() (key string, err error) {
	given := []string{}
	for _, way := range []struct {
		key string
		set bool
	}{
		{"username", a.Username != ""},
		{"password", a.Password != ""},
		{"password_file", a.PasswordFile != ""},
		{"docker_config", a.DockerConfig != ""},
		{"keychain", a.Keychain != ""},
	} {
		if way.set {
			given = append(given, way.key)
		}
	}
	switch {
	case len(given) == 0:
		return "username", errors.New("no account; write a username with password or password_file, or docker_config, or keychain")
	case len(given) > 1 && (a.DockerConfig != "" || a.Keychain != ""):
		return given[len(given)-1], fmt.Errorf("given along with %s; keep one of the two", given[0])
	case a.DockerConfig != "":
		_, err := readDockerConfig(a.DockerConfig)
		return "docker_config", err
	case a.Keychain != "":
		if keychain(a.Keychain) == nil { // not quoted: it may be a secret in the wrong place
			return "keychain", errors.New("not known; write one of ecr, google, azure")
		}
	case a.Password != "" && a.PasswordFile != "":
		return "password_file", errors.New("given along with password; keep one of the two")
	case a.Username == "":
		return "username", errors.New("missing, although a password is given; write the user, or remove the password")
	case a.Password == "" && a.PasswordFile == "":
		return "username", errors.New("without a password; add password or password_file, or remove it")
	case strings.Contains(a.Username, ":"):
		return "username", errors.New("a colon in it; write the user name alone (RFC 7617 allows no colon there)")
	case a.PasswordFile != "":
		_, err := readPassword(a.PasswordFile)
		return "password_file", err
	}
	return "", nil
}

// newCredentials returns the credentials of a for base, a URL of registry. Requests to the
// registry itself are sent through rt. failed is called for each failure to get a
// credential, with whether an older one is still used. The error is about docker_config or
// keychain, whichever is set, and says what to write instead.
func newCredentials(a Account, registry string, base *url.URL, rt http.RoundTripper, failed func(err error, serves bool)) (credentials, error) {
	var ask asker
	var err error
	switch {
	case a.DockerConfig != "":
		ask, err = newDockerConfig(a.DockerConfig, base)
	case a.Keychain != "":
		ask, err = keychain(a.Keychain)(registry, base, rt)
	default:
		ask = a.ask
	}
	if err != nil {
		return nil, err
	}
	return &shared{ask: ask, failed: failed}, nil
}

// asker gets a credential. It may ignore ctx.
type asker func(ctx context.Context) (granted, error)

// granted is a credential, and how long it may be cached: not at all if expires is zero.
type granted struct {
	authn.AuthConfig
	expires time.Time
	renew   time.Time // from then on a new one is requested, while this one is still valid
}

// lasting returns a credential that is valid until expires. It is renewed that much
// earlier, but not before half of its life is over.
func lasting(c authn.AuthConfig, expires time.Time, early time.Duration) granted {
	life := time.Until(expires)
	return granted{c, expires, expires.Add(-min(early, life/2))}
}

func (a Account) ask(context.Context) (granted, error) {
	password := a.Password
	if a.PasswordFile != "" {
		var err error
		if password, err = readPassword(a.PasswordFile); err != nil {
			return granted{}, fmt.Errorf("the password: %w", err)
		}
	}
	return granted{AuthConfig: authn.AuthConfig{Username: a.Username, Password: password}}, nil
}

const (
	// maxAsking bounds one request for a credential: while new callers keep joining, one
	// that hangs would never be cancelled.
	maxAsking = time.Minute
	// maxRenewal is how long a caller waits for a new credential while the old one is
	// valid. renewalPause is the time after a failed renewal until the next try.
	maxRenewal   = 5 * time.Second
	renewalPause = time.Minute
)

// shared makes one request for all callers that need a credential at the same time, and
// caches the credential as long as it may. The request is cancelled when no caller waits
// for it. The next one begins after it has ended, so that at most one hangs.
type shared struct {
	ask    asker
	failed func(err error, serves bool)

	mu   sync.Mutex // guards the fields below, and question.waiting
	kept granted
	now  *question // under way
}

type question struct {
	cancel  context.CancelFunc
	waiting int
	done    chan struct{} // closed once the fields below are set
	answer  granted
	err     error
}

func (s *shared) get(ctx context.Context) (authn.AuthConfig, error) {
	s.mu.Lock()
	kept := s.kept
	s.mu.Unlock()
	now := time.Now()
	if now.Before(kept.renew) {
		return kept.AuthConfig, nil
	}
	if !now.Before(kept.expires) {
		return s.wait(ctx, kept)
	}
	renewal, cancel := context.WithTimeout(ctx, maxRenewal)
	defer cancel()
	c, err := s.wait(renewal, kept)
	if err == nil {
		return c, nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.kept == kept {
		if renewal.Err() != nil && ctx.Err() == nil { // the caller gave up; run may not report it
			s.failed(err, true)
		}
		s.kept.renew = now.Add(renewalPause)
	}
	return kept.AuthConfig, nil // callers get the failure after this one has expired
}

// wait joins the request under way, or begins one. If the cached credential is newer than
// the one that the caller has seen, it returns that instead.
func (s *shared) wait(ctx context.Context, seen granted) (authn.AuthConfig, error) {
	for {
		q, newer := s.join(seen)
		if q == nil {
			return newer, nil
		}
		select {
		case <-q.done:
		case <-ctx.Done():
			s.leave(q)
			return authn.AuthConfig{}, fmt.Errorf("wait for the credential: %w", context.Cause(ctx))
		}
		// A request that earlier callers gave up has no result: try again.
		if q.err == nil || !errors.Is(q.err, errGivenUp) {
			return q.answer.AuthConfig, q.err
		}
	}
}

// errGivenUp ends a request for which no caller waits.
var errGivenUp = errors.New("no caller waits for it")

func (s *shared) join(seen granted) (*question, authn.AuthConfig) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.kept != seen {
		return nil, s.kept.AuthConfig
	}
	if s.now == nil {
		q := &question{done: make(chan struct{})}
		s.now = q
		var ctx context.Context
		ctx, q.cancel = context.WithTimeout(context.Background(), maxAsking)
		go task.Guard("question for a credential", func() { s.run(ctx, q) })()
	}
	s.now.waiting++
	return s.now, authn.AuthConfig{}
}

func (s *shared) leave(q *question) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if q.waiting--; q.waiting == 0 {
		q.cancel()
	}
}

func (s *shared) run(ctx context.Context, q *question) {
	var answer granted
	err := task.Try("question for a credential", func() (err error) { answer, err = s.ask(ctx); return err })
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case err == nil:
		s.kept = answer
	case errors.Is(ctx.Err(), context.Canceled):
		err = errGivenUp
	default:
		s.failed(err, time.Now().Before(s.kept.expires))
	}
	q.cancel()
	q.answer, q.err, s.now = answer, err, nil
	close(q.done)
}
