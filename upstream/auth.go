package upstream

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"golang.org/x/sync/singleflight"
)

// auth answers one origin's challenges and remembers the answers. Nothing is
// known of a registry before its first 401.
type auth struct {
	registry *Registry
	base     *url.URL
	tokens   *lru.Cache[tokenKey, token] // bounded: scopes come from clients
	flight   singleflight.Group          // one request per tokenKey

	first sync.Once     // starts the ping
	met   chan struct{} // closed when the ping is over, whatever came of it

	mu     sync.Mutex // guards the fields below
	learnt challenge  // the last challenge; scheme "" before the first
	fixed  string     // the scope of every repository, for registries that name no repository in it
	basic  string     // the last accepted user:password
}

// tokenKey says what a token is good for.
type tokenKey struct{ realm, service, scope string }

type token struct {
	value   string
	expires time.Time
}

// maxTokens is the number of repositories whose token is kept.
const maxTokens = 1024

// authorization is what one request shows to the registry.
type authorization struct {
	header  string
	key     tokenKey // of a bearer token
	failed  error    // why there is no token for key
	fresh   bool     // the token was made while this request waited: a 401 is no matter of age
	hint    string   // what the operator could change, if it is refused
	secrets []string // to be kept out of error messages
}

func newAuth(r *Registry, base *url.URL) (*auth, error) {
	tokens, err := lru.New[tokenKey, token](maxTokens)
	if err != nil {
		return nil, fmt.Errorf("make token cache: %w", err)
	}
	return &auth{registry: r, base: base, tokens: tokens, met: make(chan struct{})}, nil
}

const (
	opPing = "ping"
	// pingTime bounds the ping altogether: no answer is worth more of a
	// caller's patience, for a registry that gives none can still be asked.
	pingTime = 5 * time.Second
)

// meet asks the version endpoint for the registry's challenge, once, before
// anything else: all that want something of a registry not yet known wait for
// this one 401, rather than get one each. Whatever else comes of it, silence
// too, is no matter: they go on, and learn from a 401 of their own. The only
// error is the end of ctx.
func (r *Registry) meet(ctx context.Context, e *endpoint) error {
	a := e.auth
	a.first.Do(func() {
		go func() {
			defer close(a.met)
			r.ping(e)
		}()
	})
	select {
	case <-a.met:
		return nil
	case <-ctx.Done():
		return r.networkError(ctx, opPing, "waiting for the registry's challenge", context.Cause(ctx))
	}
}

// ping runs under the registry's own context, for many callers wait for it. It
// follows no redirect: another origin's challenge is not this registry's.
func (r *Registry) ping(e *endpoint) {
	ctx, cancel := context.WithTimeout(r.ctx, pingTime)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, e.url(query{}).String(), nil)
	if err != nil {
		return // cannot be, and the question itself would say so
	}
	resp, err := r.roundTrip(ctx, opPing, req)
	if err != nil {
		return // counted, and the question itself will say more
	}
	defer drain(resp)
	c, ok := parseChallenge(resp.Header.Values("WWW-Authenticate"))
	if ok && resp.StatusCode == http.StatusUnauthorized {
		e.auth.mu.Lock()
		e.auth.learn(c)
		e.auth.mu.Unlock()
	}
}

// learn remembers a challenge. The caller holds a.mu.
func (a *auth) learn(c challenge) {
	a.learnt, a.fixed = c, ""
	if c.scope != "" && !strings.HasPrefix(c.scope, "repository:") {
		a.fixed = c.scope
	}
}

// known is what the registry will ask for, judging by its last challenge, so
// that a request for another repository needs no 401 of its own. Where that
// fails the request goes out bare, for the registry may have changed its mind.
func (a *auth) known(ctx context.Context, q query) (authorization, error) {
	a.mu.Lock()
	c, fixed, basic := a.learnt, a.fixed, a.basic
	a.mu.Unlock()
	switch c.scheme {
	case "basic":
		if basic == "" {
			return a.renewBasic(q, c, authorization{})
		}
		return basicAuthorization(basic), nil
	case "bearer":
		c.scope = fixed
		if c.scope == "" {
			c.scope = pullScope(q.repo)
		}
		next, err := a.bearer(ctx, c, "")
		if err != nil && ctx.Err() == nil {
			next, err = authorization{key: keyOf(c), failed: err}, nil
		}
		return next, err
	}
	return authorization{}, nil
}

// renew answers the challenge of a 401 that rejected sent. An empty header
// means that there is nothing better to show.
func (a *auth) renew(ctx context.Context, q query, resp *http.Response, sent authorization) (authorization, error) {
	c, ok := parseChallenge(resp.Header.Values("WWW-Authenticate"))
	if !ok {
		return authorization{}, nil
	}
	switch c.scheme {
	case "basic":
		return a.renewBasic(q, c, sent)
	default:
		a.mu.Lock()
		a.learn(c)
		a.mu.Unlock()
		if c.scope == "" {
			c.scope = pullScope(q.repo)
		}
		if sent.failed != nil && sent.key == keyOf(c) {
			return authorization{}, sent.failed // same question: do not ask the token server twice
		}
		rejected := ""
		if sent.key == keyOf(c) {
			if sent.fresh {
				return authorization{}, nil // a new token would be refused as well
			}
			rejected = strings.TrimPrefix(sent.header, "Bearer ")
		}
		return a.bearer(ctx, c, rejected)
	}
}

func (a *auth) renewBasic(q query, c challenge, sent authorization) (authorization, error) {
	user, password, err := a.registry.credential(q.op)
	if err != nil {
		return authorization{}, err
	}
	if user == "" {
		return authorization{hint: a.registry.key("username") + " is not set"}, nil
	}
	next := basicAuthorization(base64.StdEncoding.EncodeToString([]byte(user + ":" + password)))
	next.secrets = append(next.secrets, password)
	a.mu.Lock()
	a.learnt, a.basic = c, strings.TrimPrefix(next.header, "Basic ")
	a.mu.Unlock()
	if next.header == sent.header {
		return authorization{}, nil
	}
	return next, nil
}

func basicAuthorization(userPassword string) authorization {
	a := authorization{header: "Basic " + userPassword, secrets: []string{userPassword}}
	if b, err := base64.StdEncoding.DecodeString(userPassword); err == nil {
		_, password, _ := strings.Cut(string(b), ":")
		a.secrets = append(a.secrets, password)
	}
	return a
}

func pullScope(repo string) string { return "repository:" + repo + ":pull" }

func keyOf(c challenge) tokenKey { return tokenKey{c.realm, c.service, c.scope} }

// bearer returns a kept token for c, or a new one. A token equal to rejected
// is no longer good. All who want the same token wait for one request, which
// outlives any of them.
func (a *auth) bearer(ctx context.Context, c challenge, rejected string) (authorization, error) {
	key := keyOf(c)
	realm, credentialed, hint, err := a.realm(c)
	if err != nil {
		return authorization{}, err
	}
	made := func(value string, fresh bool) authorization {
		return authorization{header: "Bearer " + value, key: key, fresh: fresh, hint: hint, secrets: []string{value}}
	}
	if t, ok := a.valid(key, rejected); ok {
		return made(t, false), nil
	}
	// The rejected token is part of the flight's name: who holds a newer one
	// must not be handed the answer to an older question.
	flight := strings.Join([]string{key.realm, key.service, key.scope, rejected}, "\x00")
	answer := a.flight.DoChan(flight, func() (any, error) {
		if t, ok := a.valid(key, rejected); ok {
			return t, nil
		}
		t, err := a.registry.fetchToken(realm, key, credentialed)
		if err != nil {
			return "", err
		}
		if time.Now().Before(t.expires) {
			a.tokens.Add(key, t)
		} else {
			a.tokens.Remove(key)
		}
		return t.value, nil
	})
	select {
	case <-ctx.Done():
		return authorization{}, a.registry.networkError(ctx, opToken, "waiting for a token", context.Cause(ctx))
	case got := <-answer:
		if got.Err != nil {
			return authorization{}, withHint(got.Err, hint)
		}
		return made(got.Val.(string), true), nil
	}
}

func (a *auth) valid(key tokenKey, rejected string) (string, bool) {
	t, ok := a.tokens.Get(key)
	if !ok || t.value == rejected || !time.Now().Before(t.expires) {
		return "", false
	}
	return t.value, true
}

func withHint(err error, hint string) error {
	e, ok := errors.AsType[*Error](err)
	if hint == "" || !ok || !errors.Is(err, ErrDenied) {
		return err
	}
	hinted := *e // shared by all who waited
	hinted.Message = strings.TrimPrefix(hinted.Message+"; "+hint, "; ")
	return &hinted
}

// realm decides what a token server may be sent (I5): the credential only at
// the registry's own host or a listed one, and nothing over plain HTTP unless
// the registry's own URL is http.
func (a *auth) realm(c challenge) (u *url.URL, credentialed bool, hint string, err error) {
	r := a.registry
	u, err = url.Parse(c.realm)
	if err != nil || u.User != nil || !validHost(u.Host) || u.Scheme != "https" && u.Scheme != "http" {
		return nil, false, "", r.fail(opToken, ErrInvalid, "the token realm is no http or https URL")
	}
	if u.Scheme == "http" && a.base.Scheme == "https" {
		return nil, false, "", r.fail(opToken, ErrInvalid, "an https registry names the http token realm %s", u.Host)
	}
	if r.cfg.Username == "" {
		return u, false, "", nil
	}
	if hostPort(u) == hostPort(a.base) || slices.ContainsFunc(r.cfg.TokenRealms, func(h string) bool {
		return hostPort(u) == hostPort(&url.URL{Scheme: u.Scheme, Host: h})
	}) {
		return u, true, "", nil
	}
	return u, false, fmt.Sprintf("the credential was not sent to the token server: if %s may have it, set %s: [%q]", u.Host, r.key("token_realms"), u.Host), nil
}

// credential is the configured user and password, the latter as its file
// holds it now; empty when there is none.
func (r *Registry) credential(op string) (user, password string, err error) {
	if r.cfg.PasswordFile == "" {
		return r.cfg.Username, r.cfg.Password, nil
	}
	password, err = readPassword(r.cfg.PasswordFile)
	if err != nil {
		return "", "", r.fail(op, fmt.Errorf("%w: %w", ErrUnavailable, err), "%s", r.key("password_file"))
	}
	return r.cfg.Username, password, nil
}

// key names one of this registry's configuration keys.
func (r *Registry) key(name string) string { return "upstreams." + r.cfg.Name + "." + name }
