package upstream

import (
	"crypto/sha256"
	"errors"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/hashicorp/golang-lru/v2/simplelru"
)

const (
	// A refused login pauses for firstLoginPause, then twice as long each time: six
	// tries in five minutes at most, because registries lock accounts.
	firstLoginPause = 10 * time.Second
	maxLoginPause   = 10 * time.Minute
	// refusedScopes is how many scopes in a row must be refused until the account counts
	// as refused, and not only its rights to these scopes.
	refusedScopes = 2
	// maxScopes bounds the number of refused scopes in memory.
	maxScopes = 1024
)

// errLogin: the account's login is refused.
var errLogin = errors.New("login refused")

// login pauses an account whose login is refused, or only the refused scopes. Another
// credential is tried at once.
type login struct {
	mu       sync.Mutex                         // guards all below
	refused  [sha256.Size]byte                  // the credential that the pauses apply to
	accepted [sha256.Size]byte                  // the last credential that was accepted
	account  loginRest                          // of all scopes
	scopes   *simplelru.LRU[string, *loginRest] // nil: no scope was refused
	inARow   int                                // scopes refused since the last accepted login
}

// loginRest is the pause of a refused login.
type loginRest struct {
	why   *Error // nil: the login is not refused
	pause time.Duration
	until time.Time
}

func (r *loginRest) refuse(why *Error) {
	if r.pause = min(2*r.pause, maxLoginPause); r.pause == 0 {
		r.pause = firstLoginPause
	}
	r.why, r.until = why, time.Now().Add(r.pause)
}

func (r *loginRest) left() error {
	left := time.Until(r.until)
	if r.why == nil || left <= 0 {
		return nil
	}
	resting := *r.why
	resting.RetryAfter = left
	return &resting
}

func sumOf(c authn.AuthConfig) [sha256.Size]byte {
	return sha256.Sum256([]byte(c.Username + "\x00" + c.Password + "\x00" + c.IdentityToken))
}

// resting returns why a credential is not sent for a scope now; nil: it may be sent.
func (l *login) resting(c authn.AuthConfig, scope string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if sumOf(c) != l.refused {
		return nil
	}
	if err := l.account.left(); err != nil || l.scopes == nil {
		return err
	}
	if r, ok := l.scopes.Get(scope); ok {
		return r.left()
	}
	return nil
}

// refuse records that a credential was refused for a scope. A credential that was accepted
// before may have lost only its rights to that scope. refuse reports whether the account
// pauses now, and did not before.
func (l *login) refuse(c authn.AuthConfig, scope string, why *Error) (first bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	sum := sumOf(c)
	if sum != l.refused || l.scopes == nil {
		l.refused, l.inARow = sum, 0
		l.account.pause = 0
		l.scopes, _ = simplelru.NewLRU[string, *loginRest](maxScopes, nil) // the size is right
	}
	r, known := l.scopes.Get(scope)
	if !known {
		r = &loginRest{}
		l.scopes.Add(scope, r)
		l.inARow++
	}
	r.refuse(why)
	if l.account.why == nil && sum == l.accepted && l.inARow < refusedScopes {
		return false
	}
	first = l.account.why == nil
	l.account.refuse(why)
	return first
}

// accept records that a credential was accepted for a scope. It reports whether the account
// was refused before.
func (l *login) accept(c authn.AuthConfig, scope string) (before bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.accepted, l.inARow = sumOf(c), 0
	if l.scopes != nil {
		l.scopes.Remove(scope)
	}
	return l.end()
}

// end ends the pause of the account. It reports whether the account was refused.
func (l *login) end() bool {
	refused := l.account.why != nil
	l.account = loginRest{}
	return refused
}

// loginRefused pauses the account, or only the scope. It logs a pause of the account once.
func (a *account) loginRefused(c authn.AuthConfig, scope string, why *Error) {
	refused := *why
	refused.Err, refused.own = errors.Join(ErrDenied, errLogin), false
	if !a.login.refuse(c, scope, &refused) {
		return
	}
	r := a.endpoint.registry
	r.metrics.refused.WithLabelValues(r.cfg.label()).Inc()
	r.log.Warn("login refused; serving stored content: change the account or its password", "upstream", r.cfg.Name, "account", a.key, "error", why)
}

func (a *account) loginAccepted(c authn.AuthConfig, scope string) {
	if !a.login.accept(c, scope) {
		return
	}
	r := a.endpoint.registry
	r.metrics.refused.WithLabelValues(r.cfg.label()).Dec()
	r.log.Info("login accepted again", "upstream", r.cfg.Name, "account", a.key)
}

// forget removes the account from the metric of refused logins.
func (a *account) forget() {
	a.login.mu.Lock()
	defer a.login.mu.Unlock()
	if a.login.end() {
		r := a.endpoint.registry
		r.metrics.refused.WithLabelValues(r.cfg.label()).Dec()
	}
}
