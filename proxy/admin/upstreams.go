package admin

import (
	"cmp"
	"time"

	"github.com/cachalot-registry/cachalot/upstream"
)

// UpstreamsAnswer is the response of GET upstreams.
type UpstreamsAnswer struct {
	Upstreams []UpstreamAnswer `json:"upstreams"`
}

// UpstreamAnswer is the state of an upstream.
type UpstreamAnswer struct {
	Name         string      `json:"name"`
	Aliases      []string    `json:"aliases"`
	Hosts        []string    `json:"hosts"`
	Default      bool        `json:"default"`
	Unlisted     bool        `json:"unlisted"`
	State        string      `json:"state"` // ok, degraded, limited, failing
	Unchecked    bool        `json:"serves_unchecked"`
	Downloads    int         `json:"downloads"`
	MaxDownloads int         `json:"max_downloads"`
	URLs         []URLAnswer `json:"urls"`
}

// URLAnswer is the state of one of an upstream's URLs.
type URLAnswer struct {
	URL          string          `json:"url"`
	Breaker      string          `json:"breaker"`
	RestingUntil time.Time       `json:"resting_until,omitzero"`
	SlowUntil    time.Time       `json:"slow_until,omitzero"`
	Accounts     []AccountAnswer `json:"accounts"`
}

// AccountAnswer is what is left of the rate limit of an account.
type AccountAnswer struct {
	Name         string    `json:"name"` // of the user; else the key that says where the account is, or "anonymous"
	Key          string    `json:"key,omitempty"`
	Limit        *int64    `json:"limit,omitempty"`
	Remaining    *int64    `json:"remaining,omitempty"`
	Said         time.Time `json:"said,omitzero"`
	RestingUntil time.Time `json:"resting_until,omitzero"`
}

func (c *call) upstreams() error {
	answer := UpstreamsAnswer{Upstreams: []UpstreamAnswer{}}
	for _, u := range c.p.Upstreams() {
		one := UpstreamAnswer{
			Name: u.Registry.Name(), Aliases: append([]string{}, u.Aliases...), Hosts: append([]string{}, u.Hosts...),
			Default: u.Default, Unlisted: u.Unlisted, Unchecked: u.Unchecked,
		}
		one.fill(u.Registry.Health())
		answer.Upstreams = append(answer.Upstreams, one)
	}
	return c.answer(answer)
}

func (u *UpstreamAnswer) fill(h upstream.Health) {
	u.Downloads, u.MaxDownloads = h.Downloads, h.MaxDownloads
	well, limited := 0, 0
	for _, e := range h.Endpoints {
		a := URLAnswer{URL: e.URL, Breaker: e.Breaker, RestingUntil: e.RestingUntil.UTC(), SlowUntil: e.SlowUntil.UTC()}
		resting := 0
		for _, acc := range e.Accounts {
			one := AccountAnswer{Name: cmp.Or(acc.Name, acc.Key, "anonymous"), Key: acc.Key, Said: acc.Said.UTC(), RestingUntil: acc.RestingUntil.UTC()}
			if acc.Limit > 0 {
				one.Limit, one.Remaining = &acc.Limit, &acc.Remaining
			}
			if !acc.RestingUntil.IsZero() {
				resting++
			}
			a.Accounts = append(a.Accounts, one)
		}
		switch {
		case e.Breaker != "closed" || !e.RestingUntil.IsZero():
		case resting == len(e.Accounts):
			limited++
		case e.SlowUntil.IsZero():
			well++
		}
		u.URLs = append(u.URLs, a)
	}
	switch {
	case well == len(h.Endpoints) && !u.Unchecked:
		u.State = "ok"
	case well == 0 && limited > 0:
		u.State = "limited"
	case well == 0 || u.Unchecked:
		u.State = "failing"
	default:
		u.State = "degraded"
	}
}
