package upstream

import (
	"maps"
	"time"

	"github.com/sony/gobreaker/v2"
)

// Health is what is known about a registry without a request to it.
type Health struct {
	Endpoints []EndpointHealth // in the order of the configuration
	Downloads int              // blob bodies under way
	// MaxDownloads is the limit of Downloads.
	MaxDownloads int
}

// EndpointHealth is one of a registry's URLs.
type EndpointHealth struct {
	URL     string
	Breaker string // "closed": it gets requests; "open": it failed too often; "half-open": the next request is a trial
	// RestingUntil is when its host, which asked to wait, gets requests again. Until
	// SlowUntil it is tried after the other URLs, because it was too slow. Zero: no such
	// pause.
	RestingUntil, SlowUntil time.Time
	Accounts                []AccountHealth
}

// AccountHealth is one account at a URL, or anonymous access.
type AccountHealth struct {
	Key  string // the configuration key of the credential; "": anonymous
	Name string // the user, if the configuration names one
	// Limit and Remaining are the rate limit, as the URL last said at Said; a zero Limit:
	// it never did.
	Limit, Remaining int64
	Said             time.Time
	// RestingUntil is when the last pause of its requests ends.
	RestingUntil time.Time
}

// Health sends no request, and its result has no secret.
func (r *Registry) Health() Health {
	h := Health{Downloads: r.downloads.Taken(), MaxDownloads: r.downloads.Limit()}
	now := time.Now()
	for _, e := range r.endpoints {
		eh := EndpointHealth{URL: e.base.String(), Breaker: "closed"}
		if b, known := r.breakers.origin(e.origin); known {
			eh.Breaker = b.State().String()
		}
		if !e.up() {
			eh.Breaker = gobreaker.StateOpen.String()
		}
		eh.RestingUntil = later(r.rests.until(e.origin), now)
		if at := e.slowAt.Load(); at != 0 {
			eh.SlowUntil = later(time.Unix(0, at).Add(slowPause), now)
		}
		for i, a := range e.accounts {
			var ah AccountHealth
			if a.source != nil {
				ah.Key, ah.Name = a.key, r.cfg.Accounts[i].Username
			}
			a.budget.tell(&ah, now)
			eh.Accounts = append(eh.Accounts, ah)
		}
		h.Endpoints = append(h.Endpoints, eh)
	}
	return h
}

// tell copies the state of the budget to h.
func (b *budget) tell(h *AccountHealth, now time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	h.Limit, h.Remaining, h.Said = b.limit, b.remaining, b.saidAt
	for rest := range maps.Values(b.rests) {
		if until := later(rest.until, now); until.After(h.RestingUntil) {
			h.RestingUntil = until
		}
	}
}

// later returns t, or zero if that has passed.
func later(t, now time.Time) time.Time {
	if t.After(now) {
		return t
	}
	return time.Time{}
}
