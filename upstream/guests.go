package upstream

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"strings"

	lru "github.com/hashicorp/golang-lru/v2"
)

// guests are redirect targets that want a token of their own: lscr.io redirects to ghcr.io.
// The token is anonymous, as any client gets it; the registry's own authorization is not
// sent to them.
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

// known returns the Authorization that the host of u will want, judging by its last
// challenge; "" if it has sent none, or the token has expired.
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

// wantsToken returns a response's challenge, and whether it is one for a token.
func wantsToken(resp *http.Response) (challenge, bool) {
	c, ok := parseChallenge(resp.Header.Values("WWW-Authenticate"))
	return c, ok && c.scheme == "bearer"
}

// admit gets a token for the challenge of a redirect target. It reports whether the request
// can be sent again.
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
