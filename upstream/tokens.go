package upstream

import (
	"fmt"
	"sync"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
)

const (
	// maxTokens and maxTokenBytes bound the cached tokens: clients choose the scopes,
	// and some tokens have kilobytes.
	maxTokens     = 16384
	maxTokenBytes = 16 << 20
)

// tokenKey is what a token is valid for.
type tokenKey struct{ realm, service, scope string }

type token struct {
	value         string
	made, expires time.Time
}

// tokens are the cached tokens of an account.
type tokens struct {
	mu    sync.Mutex // guards all below
	kept  *lru.Cache[tokenKey, token]
	bytes int
}

func newTokens() (*tokens, error) {
	t := &tokens{}
	var err error
	if t.kept, err = lru.NewWithEvict(maxTokens, func(k tokenKey, old token) { t.bytes -= size(k, old) }); err != nil {
		return nil, fmt.Errorf("make token cache: %w", err)
	}
	return t, nil
}

func size(k tokenKey, t token) int {
	return len(k.realm) + len(k.service) + len(k.scope) + len(t.value)
}

// add caches a token in place of the previous one, unless it has expired.
func (t *tokens) add(k tokenKey, fetched token) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.kept.Remove(k)
	if !time.Now().Before(fetched.expires) {
		return
	}
	t.kept.Add(k, fetched)
	for t.bytes += size(k, fetched); t.bytes > maxTokenBytes; {
		t.kept.RemoveOldest()
	}
}

// valid returns a cached token that has not expired, and is not the rejected one.
func (t *tokens) valid(k tokenKey, rejected string) (token, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	kept, ok := t.kept.Get(k)
	if !ok || kept.value == rejected || !time.Now().Before(kept.expires) {
		return token{}, false
	}
	return kept, true
}
