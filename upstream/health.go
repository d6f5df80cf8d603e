package upstream

import (
	"maps"
	"time"

	"github.com/sony/gobreaker/v2"
)

// Health is what is known of a registry without asking it.
type Health struct {
	Endpoints []EndpointHealth // in the order of the configuration
	Downloads int              // blob bodies under way
	// MaxDownloads may be under way at once.
	MaxDownloads int
}

// EndpointHealth is one of a registry's URLs.
type EndpointHealth struct {
	URL     string
	Breaker string // "closed": it is asked; "open": it failed too often; "half-open": the next request is a trial
	// RestingUntil is when its host may be asked again, as it said; SlowUntil is
	// until when it is asked after the others, for bodies that came too slowly.
	// Zero: now.
	RestingUntil, SlowUntil time.Time
	Accounts                []AccountHealth
}

// AccountHealth is one account at a URL, or anonymous access.
type AccountHealth struct {
	Key  string // of the configuration, which says where the credential is; "": anonymous
	Name string // the user, where the configuration names one
	// Limit and Remaining are of the rate limit, as the URL last said at Said; a
	// zero Limit: never.
	Limit, Remaining int64
	Said             time.Time
	// RestingUntil is when what counts towards the limit may be asked again.
	RestingUntil time.Time
}

// Health never waits for the registry, and holds no secret.
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

// tell fills in what the budget knows.
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

// later is t, or zero where that has passed.
func later(t, now time.Time) time.Time {
	if t.After(now) {
		return t
	}
	return time.Time{}
}
