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

// endpoint is one of a registry's URLs, and what is known of it. Nothing is
// before its first 401.
type endpoint struct {
	registry *Registry
	base     *url.URL
	root     string // the path before /v2
	prefix   string // of each repository, which clients do not see: "dockerhub/"
	origin   string
	accounts []*account // at least one, which may be anonymous

	first  sync.Once     // starts the ping
	met    chan struct{} // closed when the ping is over, whatever came of it
	ranges atomic.Bool   // it has answered a Range as it should
	failed atomic.Int32  // requests in a row, since the last that was answered well
	probed atomic.Int64  // Unix nanoseconds of the last one
	slowAt atomic.Int64  // Unix nanoseconds of the last answer or body that came too slowly
	outrun atomic.Int32  // races in a row that another URL has won

	mu     sync.Mutex                         // guards the fields below
	sticky *lru.Cache[string, *stickyAccount] // by repository
	next   int                                // the account whose turn comes next
	learnt challenge                          // the last challenge; scheme "" before the first
	fixed  string                             // the scope of every repository, for registries that name no repository in it
	scopes *lru.Cache[string, string]         // by repository, where it is not the path's
}

// stickyAccount is the account that a repository is asked for with. It lasts as long as
// a token does, so that one pull needs one token a repository.
type stickyAccount struct {
	account int
	until   time.Time
}

// maxRepositories bounds the repositories of which something is known.
const maxRepositories = 8192

// stickyFor is the life of Docker Hub's and GitLab's tokens.
const stickyFor = 5 * time.Minute

// newBareEndpoint is one without accounts.
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

// setUp says whether the endpoint's host is asked. That of a registry which a
// client named has no metric.
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

// url is where q is asked at e. The host is the configured one whatever q holds.
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

// inTurn is the accounts in the order in which to ask for a repository: its
// own, then the others.
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

// stick makes the account that was answered the one for the repository.
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
	// pingTime bounds the ping altogether: no answer is worth more of a
	// caller's patience, for a registry that gives none can still be asked.
	pingTime = 5 * time.Second
)

// discoverChallenge asks the version endpoint for the registry's challenge, once, before
// anything else: all that want something of a registry not yet known wait for
// this one 401, rather than get one each. Whatever else comes of it, silence
// too, is no matter: they go on, and learn from a 401 of their own. The only
// error is the end of ctx.
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

// ping ends with the registry and with no caller, for many wait for it. It
// follows no redirect: another origin's challenge is not this registry's.
func (e *endpoint) ping(ctx context.Context) {
	r := e.registry
	ctx, cancel := context.WithTimeout(ctx, pingTime)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, e.url(query{}).String(), nil)
	if err != nil {
		return // cannot be, and the question itself would say so
	}
	resp, err := r.roundTrip(ctx, purpose{op: opPing}, req)
	if err != nil {
		return // counted, and the question itself will say more
	}
	defer drain(resp)
	c, ok := parseChallenge(resp.Header.Values("WWW-Authenticate"))
	if ok && resp.StatusCode == http.StatusUnauthorized {
		e.learn(c, "")
	}
}

// learn remembers a challenge, to a request for a repository or ("") to none. What
// scope the repository has is not always in its path: a proxy may rewrite that.
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

// challenge is what the registry will ask for before it shows q's repository,
// judging by the last time. Its scheme is "" where that is not known.
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

// count notes what became of a request, to tell whether the URL is up.
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

// healthy is up. A URL that could be tried again is tried, in the background: while
// another URL serves, no client has to find out whether this one is still broken.
func (e *endpoint) healthy() bool {
	if e.up() {
		return true
	}
	last := e.probed.Load()
	if time.Since(time.Unix(0, last)) > breakerPause && e.probed.CompareAndSwap(last, time.Now().UnixNano()) {
		go task.Guard("ping", func() { e.ping(e.registry.ctx) })() // for no longer than that pause
	}
	return false
}

const (
	// slowPause is how long a URL that came too slowly is asked after the others: a
	// download that goes on should not meet the same trickle again, and no breaker
	// sees it, for the answers begin well. A token server that hangs is none of them.
	slowPause = time.Minute
	// lostRaces in a row are too slow: each costs a client the time until it begins.
	lostRaces = 3
)

// outran notes that another URL has won a race; not so where ctx has ended.
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

// publish sums up what the accounts have left, in the metrics.
func (e *endpoint) publish() {
	e.mu.Lock() // so that the sum of the last change is set last
	defer e.mu.Unlock()
	var limit, remaining int64
	for _, a := range e.accounts {
		l, r := a.budget.said()
		limit, remaining = limit+l, remaining+r
	}
	if limit > 0 { // else it never said
		label := e.registry.cfg.label()
		e.registry.metrics.limit.WithLabelValues(label).Set(float64(limit))
		e.registry.metrics.remaining.WithLabelValues(label).Set(float64(remaining))
	}
}
