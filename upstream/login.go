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
	// A refused login rests for firstLoginPause, then twice as long each time: six
	// tries in five minutes at most, for registries lock accounts.
	firstLoginPause = 10 * time.Second
	maxLoginPause   = 10 * time.Minute
	// refusedScopes is how many scopes in a row are refused before it is the account
	// that is taken to be refused, and not what it may see.
	refusedScopes = 2
	// maxScopes bounds the refused scopes that are known.
	maxScopes = 1024
)

// errLogin: the account's login is refused.
var errLogin = errors.New("login refused")

// login rests an account that is refused, or what it is refused for. Another
// credential is tried at once.
type login struct {
	mu       sync.Mutex                         // guards all below
	refused  [sha256.Size]byte                  // the credential that the rests are about
	accepted [sha256.Size]byte                  // the last one that was taken
	account  loginRest                          // of all
	scopes   *simplelru.LRU[string, *loginRest] // nil: none was refused
	inARow   int                                // scopes refused since the last success
}

// loginRest is how long a refused login is not tried.
type loginRest struct {
	why   *Error // nil: it is not refused
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

// resting is why a credential is not shown for a scope now; nil: it may be.
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

// refuse records that a credential was refused for a scope. One that was taken before
// may have lost what it may see there alone. It reports whether the account rests
// now, and did not before.
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

// accept records that a credential was taken for a scope. It reports whether the account was
// refused before.
func (l *login) accept(c authn.AuthConfig, scope string) (before bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.accepted, l.inARow = sumOf(c), 0
	if l.scopes != nil {
		l.scopes.Remove(scope)
	}
	return l.end()
}

// end ends the rest of the account. It reports whether it was refused.
func (l *login) end() bool {
	refused := l.account.why != nil
	l.account = loginRest{}
	return refused
}

// loginRefused rests the account, or what it is refused for, and says the former once.
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

// forget ends what is said of the account in the metrics.
func (a *account) forget() {
	a.login.mu.Lock()
	defer a.login.mu.Unlock()
	if a.login.end() {
		r := a.endpoint.registry
		r.metrics.refused.WithLabelValues(r.cfg.label()).Dec()
	}
}
