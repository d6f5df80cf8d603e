package upstream

import (
	"log/slog"
	"net/http"
	"sync"
	"time"
)

const (
	// defaultRest is how long GETs of manifests pause after a response that says that none
	// is left. They are tried again after it, because the window of a limit slides.
	defaultRest = time.Minute
	// firstRest is how long requests for manifests pause after a 429 that gives no time:
	// enough for a limit per second. The pause doubles with each further 429, up to
	// defaultRest. Blobs pause only if a 429 gives a time: their download is under way.
	firstRest = time.Second
	// counted is the request that Docker Hub counts. A HEAD is free, and its response
	// says how many are left.
	counted = "get_" + string(KindManifest)
	free    = "head_" + string(KindManifest)
)

// lowMarks are the shares of a limit, in percent, at which the log warns.
func lowMarks() []int64 { return []int64{5, 20} }

// budget is what is left of an account's rate limit at one URL. While it is spent, counted
// requests fail here at once, with the time left; others are still sent.
type budget struct {
	log *slog.Logger // names the upstream, and the account where there are several

	mu               sync.Mutex      // guards the fields below
	limit, remaining int64           // as the upstream last said; limit 0: it never did
	saidAt           time.Time       // when that was
	rests            map[string]rest // by op
	warned           int64           // the lowest mark that was logged; 0: none
}

// rest is the pause of an op, or its last pause.
type rest struct {
	until  time.Time
	unsaid time.Duration // its length, if a 429 gave no time; else 0
}

func newBudget(log *slog.Logger) *budget { return &budget{log: log, rests: map[string]rest{}} }

// said returns the limit as the upstream last gave it; 0 and 0: it never did.
func (b *budget) said() (limit, remaining int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.limit, b.remaining
}

// left returns how long op must still pause; 0: it may be sent.
func (b *budget) left(op string) time.Duration {
	b.mu.Lock()
	defer b.mu.Unlock()
	return max(0, time.Until(b.rests[op].until))
}

// note reads the rate limit from a response.
func (b *budget) note(op string, status int, h http.Header) {
	limit, known := parseRateLimit(h.Get("Ratelimit-Limit"))
	remaining, ok := parseRateLimit(h.Get("Ratelimit-Remaining"))
	b.mu.Lock()
	defer b.mu.Unlock()
	if known && ok && limit > 0 {
		b.limit, b.remaining, b.saidAt = limit, remaining, time.Now()
		b.warn()
	}
	none := ok && remaining == 0
	switch {
	case status == http.StatusTooManyRequests && (!none || parseRetryAfter(h, time.Now()) > 0):
		b.limitedLocked(op, h)
	case none:
		b.rest(counted, rest{time.Now().Add(defaultRest), 0})
	case ok:
		delete(b.rests, counted)
	case status < http.StatusBadRequest:
		delete(b.rests, op)
	}
}

// limited reads a 429 of another server, which does not tell the quota.
func (b *budget) limited(op string, h http.Header) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.limitedLocked(op, h)
}

// limitedLocked makes op pause after a 429. The caller holds b.mu.
func (b *budget) limitedLocked(op string, h http.Header) {
	now := time.Now()
	if said := parseRetryAfter(h, now); said > 0 {
		b.rest(op, rest{now.Add(said), 0})
	} else if op == counted || op == free {
		unsaid := min(max(2*b.rests[op].unsaid, firstRest), defaultRest)
		b.rest(op, rest{now.Add(unsaid), unsaid})
	}
}

// rest makes op pause from now on. The caller holds b.mu.
func (b *budget) rest(op string, r rest) {
	if now := time.Now(); now.After(b.rests[op].until) {
		b.log.Warn("rate limit spent; serving stored content", "op", op, "seconds", r.until.Sub(now).Seconds())
	}
	b.rests[op] = r
}

// warn logs once for each mark that the limit falls below, and again after it
// has recovered. The caller holds b.mu.
func (b *budget) warn() {
	for _, mark := range lowMarks() {
		if b.remaining*100 > b.limit*mark {
			continue
		}
		if b.warned == 0 || mark < b.warned {
			b.warned = mark
			b.log.Warn("rate limit runs low", "remaining", b.remaining, "limit", b.limit, "below_percent", mark)
		}
		return
	}
	b.warned = 0
}
