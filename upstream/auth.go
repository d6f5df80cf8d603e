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

	"github.com/google/go-containerregistry/pkg/authn"
	"golang.org/x/sync/singleflight"

	"github.com/cachalot-registry/cachalot/task"
)

// account answers a registry's challenges at one URL, and caches the answers.
type account struct {
	endpoint *endpoint
	key      string      // the configuration key of its credential
	source   credentials // nil: anonymous
	budget   *budget
	tokens   *tokens
	flight   singleflight.Group // one request per tokenKey
	login    login

	mu      sync.Mutex // guards the fields below
	basic   string     // the last accepted user:password
	secrets []string   // of the last credential; removed from error messages
}

// authorization is what one request sends to the registry to authenticate.
type authorization struct {
	header  string
	key     tokenKey // of a bearer token
	failed  error    // why there is no token for key
	fresh   bool     // the token was issued while this request waited: a 401 is not due to its age
	young   bool     // it is younger than youngToken: a 403 is not due to its age
	hint    hint     // what the operator could change, if it is refused
	secrets []string // removed from error messages
}

func newAccount(e *endpoint, key string, source credentials) (*account, error) {
	tokens, err := newTokens()
	if err != nil {
		return nil, err
	}
	if source != nil {
		e.registry.metrics.refused.WithLabelValues(e.registry.cfg.label()) // the metric exists at 0 too
	}
	log := e.registry.log.With("upstream", e.registry.cfg.Name)
	if len(e.registry.cfg.Accounts) > 1 {
		log = log.With("account", key)
	}
	return &account{endpoint: e, key: key, source: source, budget: newBudget(log), tokens: tokens}, nil
}

// known returns the authorization that the registry will want, judging by its challenges so
// far, so that a request for another repository needs no 401 of its own. If a token request
// fails, q is sent without a token: the registry may not want one any more.
func (a *account) known(ctx context.Context, q query) (authorization, error) {
	c := a.endpoint.challenge(q.repo)
	switch c.scheme {
	case "basic":
		a.mu.Lock()
		basic := a.basic
		a.mu.Unlock()
		if basic == "" {
			return a.renewBasic(ctx, q, authorization{})
		}
		shown := basicAuthorization(basic)
		if err := a.login.resting(basicCredential(shown.header), q.repo); err != nil {
			return a.renewBasic(ctx, q, authorization{}) // the credential may have changed
		}
		return shown, nil
	case "bearer":
		next, err := a.bearer(ctx, c, "")
		if err != nil && ctx.Err() == nil {
			next, err = authorization{key: keyOf(c), failed: err}, nil
		}
		return next, err
	}
	return authorization{}, nil
}

// renew returns the authorization to try after a 401 or 403 that rejected sent. An empty
// header means that there is no better one.
func (a *account) renew(ctx context.Context, q query, resp *http.Response, sent authorization) (authorization, error) {
	c, asked := parseChallenge(resp.Header.Values("WWW-Authenticate"))
	if asked = asked && resp.StatusCode == http.StatusUnauthorized; asked {
		a.endpoint.learn(c, q.repo)
	} else {
		// Some registries send this response to an expired credential: ECR to a
		// password, others to a token.
		c = a.endpoint.challenge(q.repo)
	}
	switch {
	case c.scheme == "basic":
		next, err := a.renewBasic(ctx, q, sent)
		if err == nil && next.header == "" && sent.header != "" && resp.StatusCode == http.StatusUnauthorized {
			a.refusedBasic(q, sent.header)
		}
		return next, err
	case c.scheme != "bearer":
		return authorization{}, nil
	case c.scope == "":
		c.scope = a.endpoint.pullScope(q.repo)
	}
	if sent.failed != nil && sent.key == keyOf(c) {
		return authorization{}, sent.failed // same token request: do not send it twice
	}
	rejected := ""
	if sent.key == keyOf(c) {
		if sent.fresh || !asked && sent.young {
			return authorization{}, nil // a new token would be refused as well
		}
		rejected = strings.TrimPrefix(sent.header, "Bearer ")
	}
	return a.bearer(ctx, c, rejected)
}

func (a *account) renewBasic(ctx context.Context, q query, sent authorization) (authorization, error) {
	cred, err := a.credential(ctx, q.op)
	if err != nil {
		return authorization{}, err
	}
	if cred.Username == "" {
		if a.source == nil {
			return authorization{hint: hint{text: a.key + " is not set"}}, nil
		}
		return authorization{hint: hint{a.key + " has no credential for the registry", "it is " + a.endpoint.base.Host}}, nil
	}
	next := basicAuthorization(base64.StdEncoding.EncodeToString([]byte(cred.Username + ":" + cred.Password)))
	if next.header == sent.header {
		return authorization{}, nil
	}
	if err := a.login.resting(basicCredential(next.header), q.repo); err != nil {
		return authorization{}, err
	}
	a.mu.Lock()
	a.basic = strings.TrimPrefix(next.header, "Basic ")
	a.mu.Unlock()
	return next, nil
}

// refusedBasic records that the registry refused the user and password.
func (a *account) refusedBasic(q query, header string) {
	why := a.endpoint.registry.fail(q.op, ErrDenied, "user and password")
	why.Status = http.StatusUnauthorized
	a.loginRefused(basicCredential(header), q.repo, why)
}

func basicAuthorization(userPassword string) authorization {
	a := authorization{header: "Basic " + userPassword, secrets: []string{userPassword}}
	if b, err := base64.StdEncoding.DecodeString(userPassword); err == nil {
		_, password, _ := strings.Cut(string(b), ":")
		a.secrets = append(a.secrets, password)
	}
	return a
}

// basicCredential returns the user and password in a header of basicAuthorization.
func basicCredential(header string) authn.AuthConfig {
	b, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(header, "Basic "))
	if err != nil {
		return authn.AuthConfig{}
	}
	user, password, _ := strings.Cut(string(b), ":")
	return authn.AuthConfig{Username: user, Password: password}
}

// youngToken is the age up to which a token is not taken for an expired one.
const youngToken = 2 * time.Second

func keyOf(c challenge) tokenKey { return tokenKey{c.realm, c.service, c.scope} }

// bearer returns a cached token for c, or a new one. A cached token equal to rejected is
// not used. All callers that need the same token wait for one token request, which goes on
// if a caller leaves.
func (a *account) bearer(ctx context.Context, c challenge, rejected string) (authorization, error) {
	key := keyOf(c)
	realm, credentialed, hint, err := a.realm(c)
	if err != nil {
		return authorization{}, err
	}
	made := func(t token, fresh bool) authorization {
		return authorization{
			header: "Bearer " + t.value, key: key, fresh: fresh, young: time.Since(t.made) < youngToken,
			hint: hint, secrets: []string{t.value},
		}
	}
	if t, ok := a.tokens.valid(key, rejected); ok {
		return made(t, false), nil
	}
	// The rejected token is part of the flight's key: a caller whose newer token was
	// rejected must not get the result of an older token request.
	flight := strings.Join([]string{key.realm, key.service, key.scope, rejected}, "\x00")
	answer := a.flight.DoChan(flight, func() (any, error) {
		if t, ok := a.tokens.valid(key, rejected); ok {
			return t, nil
		}
		var t token
		err := task.Try("question for a token", func() (err error) {
			t, err = a.fetchToken(ctx, realm, key, credentialed)
			return err
		})
		if err != nil {
			return token{}, err
		}
		a.tokens.add(key, t)
		return t, nil
	})
	select {
	case <-ctx.Done():
		return authorization{}, a.endpoint.registry.networkError(ctx, opToken, "waiting for a token", context.Cause(ctx))
	case got := <-answer:
		if got.Err != nil {
			return authorization{}, hint.of(got.Err)
		}
		return made(got.Val.(token), true), nil
	}
}

// hint says what an operator could change: text is for clients and the log, log is for the
// log only.
type hint struct{ text, log string }

// of returns err, with the hint added if err is an ErrDenied.
func (h hint) of(err error) error {
	e, ok := errors.AsType[*Error](err)
	if h.text == "" || !ok || !errors.Is(err, ErrDenied) {
		return err
	}
	hinted := *e // a copy, because all callers that waited share e
	hinted.Message = strings.TrimPrefix(hinted.Message+"; "+h.text, "; ")
	if h.log != "" {
		return hinted.because(errors.New(h.log))
	}
	return &hinted
}

// realm decides what may be sent to a token server (I5): the credential only to the
// registry's own host or one of TokenRealms, and nothing over plain HTTP unless the
// registry's own URL is http.
func (a *account) realm(c challenge) (u *url.URL, credentialed bool, refused hint, err error) {
	r, base := a.endpoint.registry, a.endpoint.base
	u, err = url.Parse(c.realm)
	if err != nil || u.User != nil || !hasHost(u) || u.Scheme != "https" && u.Scheme != "http" {
		return nil, false, hint{}, r.fail(opToken, ErrInvalid, "the token realm is not an http or https URL")
	}
	if u.Scheme == "http" && base.Scheme == "https" {
		return nil, false, hint{}, r.fail(opToken, ErrInvalid, "an https registry names an http token realm").because(errors.New(u.Host))
	}
	if a.source == nil {
		return u, false, hint{}, nil
	}
	if hostPort(u) == hostPort(base) || slices.ContainsFunc(r.cfg.TokenRealms, func(h string) bool {
		return hostPort(u) == hostPort(&url.URL{Scheme: u.Scheme, Host: h})
	}) {
		return u, true, hint{}, nil
	}
	return u, false, hint{"the credential was not sent to the token server; to allow that, set " + r.cfg.key("token_realms"), fmt.Sprintf("[%q]", u.Host)}, nil
}

// credential returns the account's credential; empty if it has none for this URL.
func (a *account) credential(ctx context.Context, op string) (authn.AuthConfig, error) {
	if a.source == nil {
		return authn.AuthConfig{}, nil
	}
	cred, err := a.source.get(ctx)
	if err != nil {
		r := a.endpoint.registry
		if ctx.Err() != nil {
			return authn.AuthConfig{}, r.networkError(ctx, op, "waiting for the credential", context.Cause(ctx))
		}
		return authn.AuthConfig{}, r.fail(op, errNoCredential, "%s", a.key).because(err)
	}
	a.mu.Lock()
	a.secrets = []string{cred.Password, cred.IdentityToken, cred.RegistryToken}
	a.mu.Unlock()
	return cred, nil
}

// credentialFailed returns a function that counts a failure to get the credential at key.
// It logs the failure if an older credential is still valid: no caller gets the error then.
func (r *Registry) credentialFailed(key string) func(err error, serves bool) {
	failures := r.metrics.credentials.WithLabelValues(r.cfg.label())
	return func(err error, serves bool) {
		failures.Inc()
		if serves {
			r.log.Warn("credential not renewed; the old one is used until it expires", "upstream", r.cfg.Name, "account", key, "error", err)
		}
	}
}

// shown returns the secrets that a response could repeat.
func (a *account) shown(sent authorization) []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return append(slices.Clone(sent.secrets), a.secrets...)
}
