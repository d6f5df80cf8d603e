package upstream

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"strings"

	lru "github.com/hashicorp/golang-lru/v2"
)

// guests are the hosts that registries redirect to and that want a token of their own:
// lscr.io leads to ghcr.io. It is one without an account, as any client gets it;
// what the registry itself was shown stays there.
type guests struct {
	registry *Registry
	byOrigin *lru.Cache[string, *account]
}

func newGuests(r *Registry) (*guests, error) {
	byOrigin, err := lru.New[string, *account](maxOrigins)
	if err != nil {
		return nil, fmt.Errorf("make cache of guests: %w", err)
	}
	return &guests{registry: r, byOrigin: byOrigin}, nil
}

// known is the Authorization that the host of u will ask for, judging by the last
// time; "" where it has asked for none, or the token has expired.
func (g *guests) known(u *url.URL, q query) string {
	a, ok := g.byOrigin.Get(origin(u))
	if !ok {
		return ""
	}
	t, ok := a.tokens.valid(keyOf(a.endpoint.challenge(q.repo)), "")
	if !ok {
		return ""
	}
	return "Bearer " + t.value
}

// wantsToken is an answer's challenge, if it is one for a token.
func wantsToken(resp *http.Response) (challenge, bool) {
	c, ok := parseChallenge(resp.Header.Values("WWW-Authenticate"))
	return c, ok && c.scheme == "bearer"
}

// admit answers the challenge of a host that the registry has led to. It reports
// whether asking again may be of use.
func (g *guests) admit(ctx context.Context, q query, resp *http.Response) bool {
	c, ok := wantsToken(resp)
	if !ok {
		return false
	}
	u := resp.Request.URL
	a, known := g.byOrigin.Get(origin(u))
	if !known {
		e, err := newBareEndpoint(g.registry, &url.URL{Scheme: u.Scheme, Host: u.Host})
		if err != nil {
			return false
		}
		if a, err = newAccount(e, g.registry.cfg.key("username"), nil); err != nil {
			return false
		}
		g.byOrigin.Add(origin(u), a)
	}
	a.endpoint.learn(c, q.repo)
	shown := strings.TrimPrefix(resp.Request.Header.Get("Authorization"), "Bearer ")
	_, err := a.bearer(ctx, a.endpoint.challenge(q.repo), shown)
	return err == nil
}
