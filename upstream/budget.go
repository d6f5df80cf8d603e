package upstream

import (
	"log/slog"
	"net/http"
	"sync"
	"time"
)

const (
	// defaultRest is how long requests for manifests rest after an answer that says
	// that none is left: they are asked again, for the window of a limit slides.
	defaultRest = time.Minute
	// firstRest is how long they rest after a 429 that does not say: a limit of
	// requests a second is over then. It is twice as long after each that follows, up
	// to defaultRest. Blobs rest only as long as asked: their download is under way.
	firstRest = time.Second
	// counted is the request that Docker Hub counts. A HEAD is free and tells
	// what is left.
	counted = "get_" + string(KindManifest)
	free    = "head_" + string(KindManifest)
)

// lowMarks are the shares of a limit, in percent, at which the log warns.
func lowMarks() []int64 { return []int64{5, 20} }

// budget is what the rate limit leaves an account at one URL. While it is
// spent, requests that count are refused here, at once and with the time left;
// others go on.
type budget struct {
	log *slog.Logger // names the upstream, and the account where there are several

	mu               sync.Mutex      // guards the fields below
	limit, remaining int64           // as last said; limit 0: never
	saidAt           time.Time       // when that was
	rests            map[string]rest // by op
	warned           int64           // the lowest mark that was warned of; 0: none
}

// rest is when an op is asked again, or could have been.
type rest struct {
	until  time.Time
	unsaid time.Duration // how long, where the upstream did not say; 0: it did
}

func newBudget(log *slog.Logger) *budget { return &budget{log: log, rests: map[string]rest{}} }

// said is what the upstream last said of the limit; 0 and 0: nothing.
func (b *budget) said() (limit, remaining int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.limit, b.remaining
}

// left is how long op must rest; 0 when it may be asked.
func (b *budget) left(op string) time.Duration {
	b.mu.Lock()
	defer b.mu.Unlock()
	return max(0, time.Until(b.rests[op].until))
}

// note reads what an answer says of the limit.
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

// limited reads what a 429 of another server says, which speaks of no quota.
func (b *budget) limited(op string, h http.Header) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.limitedLocked(op, h)
}

// limitedLocked lets op rest after a 429. The caller holds b.mu.
func (b *budget) limitedLocked(op string, h http.Header) {
	now := time.Now()
	if said := parseRetryAfter(h, now); said > 0 {
		b.rest(op, rest{now.Add(said), 0})
	} else if op == counted || op == free {
		unsaid := min(max(2*b.rests[op].unsaid, firstRest), defaultRest)
		b.rest(op, rest{now.Add(unsaid), unsaid})
	}
}

// rest lets op rest from now on. The caller holds b.mu.
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
