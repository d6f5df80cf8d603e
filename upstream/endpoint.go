package upstream

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"

	"github.com/cachalot-registry/cachalot/task"
)

// endpoint is one of a registry's URLs, and what is known about it. Its challenge is not
// known before its first 401.
type endpoint struct {
	registry *Registry
	base     *url.URL
	root     string // the path before /v2
	prefix   string // before each repository, not visible to clients: "dockerhub/"
	origin   string
	accounts []*account // at least one, which may be anonymous

	first  sync.Once     // starts the ping
	met    chan struct{} // closed when the ping has ended, with or without a result
	ranges atomic.Bool   // it has answered a range request correctly
	failed atomic.Int32  // failed requests since the last success
	probed atomic.Int64  // Unix nanoseconds of the last ping while it was down
	slowAt atomic.Int64  // Unix nanoseconds of the last response or body that was too slow
	outrun atomic.Int32  // races in a row that another URL has won

	mu     sync.Mutex                         // guards the fields below
	sticky *lru.Cache[string, *stickyAccount] // by repository
	next   int                                // the account whose turn comes next
	learnt challenge                          // the last challenge; scheme "" before the first
	fixed  string                             // the scope of every repository, for registries that name no repository in it
	scopes *lru.Cache[string, string]         // by repository, if it is not its pullScope
}

// stickyAccount is the account that a repository uses. It lasts as long as a token, so that
// a pull needs one token per repository.
type stickyAccount struct {
	account int
	until   time.Time
}

// maxRepositories bounds the repositories with a known account or scope.
const maxRepositories = 8192

// stickyFor is the lifetime of Docker Hub's and GitLab's tokens.
const stickyFor = 5 * time.Minute

// newBareEndpoint returns an endpoint without accounts.
func newBareEndpoint(r *Registry, base *url.URL) (*endpoint, error) {
	sticky, err := lru.New[string, *stickyAccount](maxRepositories)
	if err != nil {
		return nil, fmt.Errorf("make cache of accounts: %w", err)
	}
	scopes, err := lru.New[string, string](maxRepositories)
	if err != nil {
		return nil, fmt.Errorf("make cache of scopes: %w", err)
	}
	root, prefix := splitBase(base.Path)
	return &endpoint{
		registry: r, base: base, root: root, prefix: prefix, origin: origin(base),
		sticky: sticky, scopes: scopes, met: make(chan struct{}),
	}, nil
}

func newEndpoint(r *Registry, base *url.URL) (*endpoint, error) {
	e, err := newBareEndpoint(r, base)
	if err != nil {
		return nil, err
	}
	if len(r.cfg.Accounts) == 0 {
		a, err := newAccount(e, r.cfg.key("username"), nil)
		if err != nil {
			return nil, err
		}
		e.accounts = []*account{a}
	}
	for i, configured := range r.cfg.Accounts {
		key := r.cfg.accountKey(i, configured.key())
		source, err := newCredentials(configured, r.cfg.Name, base, wire{r}, r.credentialFailed(key))
		if err != nil {
			return nil, &KeyError{key, err}
		}
		a, err := newAccount(e, key, source)
		if err != nil {
			return nil, err
		}
		e.accounts = append(e.accounts, a)
	}
	return e, nil
}

// setUp sets the metric that says whether the endpoint is up. Unlisted registries do not
// have it.
func (e *endpoint) setUp(up bool) {
	r := e.registry
	if r.cfg.Unlisted {
		return
	}
	value := 0.0
	if up {
		value = 1
	}
	r.metrics.up.WithLabelValues(r.cfg.label(), e.base.Host).Set(value)
}

// url returns the URL of q at e. Its host is always the configured one.
func (e *endpoint) url(q query) *url.URL {
	u := *e.base
	u.Path = e.root + "/v2/"
	if q.path != "" {
		u.Path += e.prefix + q.path
	}
	u.RawQuery = q.rawQuery
	return &u
}

func (e *endpoint) pullScope(repo string) string { return "repository:" + e.prefix + repo + ":pull" }

// inTurn returns the accounts in the order in which a repository tries them: its own,
// then the others.
func (e *endpoint) inTurn(repo string) []*account {
	n := len(e.accounts)
	if n == 1 {
		return e.accounts
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	t, ok := e.sticky.Get(repo)
	if !ok || time.Now().After(t.until) {
		t = &stickyAccount{account: e.next, until: time.Now().Add(stickyFor)}
		e.next = (e.next + 1) % n
		e.sticky.Add(repo, t)
	}
	return append(slices.Clone(e.accounts[t.account:]), e.accounts[:t.account]...)
}

// stick makes a, which has succeeded, the account of the repository.
func (e *endpoint) stick(repo string, a *account) {
	if len(e.accounts) == 1 {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if t, ok := e.sticky.Get(repo); ok {
		t.account = slices.Index(e.accounts, a)
	}
}

const (
	opPing = "ping"
	// pingTime bounds the whole ping. Callers wait no longer, because they can send their
	// requests without its result.
	pingTime = 5 * time.Second
)

// discoverChallenge gets the registry's challenge from the version endpoint, once, before
// any other request: the first requests to a registry wait for this one 401, instead of
// one each. After any other result, or none, they are sent and use the challenge of their
// own 401. The only error is the end of ctx.
func (e *endpoint) discoverChallenge(ctx context.Context) error {
	e.first.Do(func() {
		go task.Guard("ping", func() {
			defer close(e.met)
			ctx, cancel := e.registry.apart(ctx)
			defer cancel()
			e.ping(ctx)
		})()
	})
	select {
	case <-e.met:
		return nil
	case <-ctx.Done():
		return e.registry.networkError(ctx, opPing, "waiting for the registry's challenge", context.Cause(ctx))
	}
}

// ping requests the version endpoint. It ends with the registry and not with a caller,
// because many wait for it. It follows no redirect: another origin's challenge is not this
// registry's.
func (e *endpoint) ping(ctx context.Context) {
	r := e.registry
	ctx, cancel := context.WithTimeout(ctx, pingTime)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, e.url(query{}).String(), nil)
	if err != nil {
		return // impossible, and the request itself would report it
	}
	resp, err := r.roundTrip(ctx, purpose{op: opPing}, req)
	if err != nil {
		return // counted, and the request itself reports more
	}
	defer drain(resp)
	c, ok := parseChallenge(resp.Header.Values("WWW-Authenticate"))
	if ok && resp.StatusCode == http.StatusUnauthorized {
		e.learn(c, "")
	}
}

// learn records the challenge to a request for a repository, or for none (""). The scope of
// a repository may differ from its path, because a proxy may rewrite the path.
func (e *endpoint) learn(c challenge, repo string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.learnt, e.fixed = c, ""
	switch {
	case c.scope == "":
	case !strings.HasPrefix(c.scope, "repository:"):
		e.fixed = c.scope
	case repo != "" && c.scope != e.pullScope(repo):
		e.scopes.Add(repo, c.scope)
	case repo != "":
		e.scopes.Remove(repo)
	}
}

// challenge returns the challenge that the registry will send for a repository, judging by
// the last one. Its scheme is "" if there was none.
func (e *endpoint) challenge(repo string) challenge {
	e.mu.Lock()
	defer e.mu.Unlock()
	c := e.learnt
	if c.scope = e.fixed; c.scope != "" {
		return c
	}
	if own, ok := e.scopes.Get(repo); ok {
		c.scope = own
	} else {
		c.scope = e.pullScope(repo)
	}
	return c
}

// count records the outcome of a request, for up.
func (e *endpoint) count(o outcome) {
	switch o {
	case succeeded:
		if before := e.failed.Swap(0); before == 0 || before >= breakerFailures {
			e.setUp(true)
		}
	case failedObject, failedOrigin:
		if e.failed.Add(1) == breakerFailures {
			e.setUp(false)
		}
	}
}

// up reports whether the URL answers: fewer than breakerFailures requests in a row
// have failed.
func (e *endpoint) up() bool { return e.failed.Load() < breakerFailures }

// healthy returns up. If the URL is down and its pause is over, a ping tries it in the
// background: while another URL works, no client's request has to.
func (e *endpoint) healthy() bool {
	if e.up() {
		return true
	}
	last := e.probed.Load()
	if time.Since(time.Unix(0, last)) > breakerPause && e.probed.CompareAndSwap(last, time.Now().UnixNano()) {
		go task.Guard("ping", func() { e.ping(e.registry.ctx) })() // pingTime is no longer than breakerPause
	}
	return false
}

const (
	// slowPause is how long a URL that was too slow is tried after the others: a resumed
	// download should not get the same slow body again, and no breaker opens, because the
	// responses begin well. A URL whose token server hangs is slow too.
	slowPause = time.Minute
	// lostRaces in a row make a URL too slow: each costs a client the time until it begins.
	lostRaces = 3
)

// outran records that another URL has won a race, unless ctx has ended.
func (e *endpoint) outran(ctx context.Context) {
	if ctx.Err() == nil && e.outrun.Add(1) >= lostRaces {
		e.outrun.Store(0)
		e.setSlow()
	}
}

func (e *endpoint) setSlow() { e.slowAt.Store(time.Now().UnixNano()) }

func (e *endpoint) slow() bool {
	at := e.slowAt.Load()
	return at != 0 && time.Since(time.Unix(0, at)) < slowPause
}

// publish sets the rate limit metrics to the sum of the accounts.
func (e *endpoint) publish() {
	e.mu.Lock() // so that the sum of the last change is set last
	defer e.mu.Unlock()
	var limit, remaining int64
	for _, a := range e.accounts {
		l, r := a.budget.said()
		limit, remaining = limit+l, remaining+r
	}
	if limit > 0 { // 0: the registry never gave a limit
		label := e.registry.cfg.label()
		e.registry.metrics.limit.WithLabelValues(label).Set(float64(limit))
		e.registry.metrics.remaining.WithLabelValues(label).Set(float64(remaining))
	}
}
