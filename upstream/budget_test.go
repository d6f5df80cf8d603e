package upstream

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/cachalot-registry/cachalot/upstream/upstreamtest"
)

func textLog(w io.Writer) *slog.Logger { return slog.New(slog.NewTextHandler(w, nil)) }

func header(pairs ...string) http.Header {
	h := http.Header{}
	for i := 0; i+1 < len(pairs); i += 2 {
		h.Set(pairs[i], pairs[i+1])
	}
	return h
}

// TestBudgetRests: which requests rest after which response, and for how long.
func TestBudgetRests(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		op     string
		status int
		header http.Header
		rests  map[string]time.Duration
	}{
		"plenty":               {counted, 200, header("RateLimit-Limit", "100;w=21600", "RateLimit-Remaining", "50;w=21600"), nil},
		"no limit":             {counted, 200, header(), nil},
		"none left":            {free, 200, header("RateLimit-Limit", "100;w=21600", "RateLimit-Remaining", "0;w=21600"), map[string]time.Duration{counted: time.Minute}},
		"429 that says":        {counted, 429, header("Retry-After", "600"), map[string]time.Duration{counted: 10 * time.Minute}},
		"429 that does not":    {counted, 429, header(), map[string]time.Duration{counted: time.Second}},
		"429, none left":       {counted, 429, header("RateLimit-Limit", "100", "RateLimit-Remaining", "0"), map[string]time.Duration{counted: time.Minute}},
		"429 to a HEAD":        {free, 429, header("Retry-After", "7"), map[string]time.Duration{free: 7 * time.Second}},
		"429 to a blob":        {"get_blob", 429, header(), nil},
		"429 to a blob, timed": {"get_blob", 429, header("Retry-After", "7"), map[string]time.Duration{"get_blob": 7 * time.Second}},
		"a garbled limit":      {counted, 200, header("RateLimit-Limit", "lots", "RateLimit-Remaining", "-1"), nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				var log strings.Builder
				b := newBudget(textLog(&log))
				b.note(tc.op, tc.status, tc.header)
				for _, op := range []string{counted, free, "get_blob", "token"} {
					if got := b.left(op); got != tc.rests[op] {
						t.Errorf("%s rests for %s, want %s", op, got, tc.rests[op])
					}
					time.Sleep(tc.rests[op])
					if got := b.left(op); got != 0 {
						t.Errorf("%s still rests for %s", op, got)
					}
				}
				if said := strings.Contains(log.String(), "rate limit spent"); said != (len(tc.rests) > 0) {
					t.Errorf("log: %s", log.String())
				}
			})
		})
	}
}

// TestBudgetGrows: each 429 without Retry-After doubles the rest, up to a minute. A success
// resets it.
func TestBudgetGrows(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newBudget(textLog(io.Discard))
		for _, want := range []time.Duration{1, 2, 4, 8, 16, 32, 60, 60, 0, 1} {
			if want == 0 {
				b.note(counted, 200, header())
				continue
			}
			b.note(counted, 429, header())
			if left := b.left(counted); left != want*time.Second {
				t.Errorf("rests for %s, want %d s", left, want)
			}
			time.Sleep(want * time.Second)
		}
	})
}

// TestBudgetRecovers: a HEAD whose response has requests left ends the rest.
func TestBudgetRecovers(t *testing.T) {
	t.Parallel()
	var log strings.Builder
	b := newBudget(textLog(&log))
	b.note(counted, 429, header("Retry-After", "600"))
	b.note(free, 200, header("RateLimit-Limit", "100", "RateLimit-Remaining", "3"))
	if left := b.left(counted); left != 0 {
		t.Errorf("rests for %s", left)
	}
}

// TestBudgetWarns: the log warns once at 20 %, once at 5 %, and again after recovery.
func TestBudgetWarns(t *testing.T) {
	t.Parallel()
	var log strings.Builder
	b := newBudget(textLog(&log).With("upstream", "docker.io"))
	for _, remaining := range []int{100, 21, 20, 19, 6, 5, 4, 0, 30, 20} {
		b.note(free, 200, header("RateLimit-Limit", "100;w=21600", "RateLimit-Remaining", fmt.Sprint(remaining)))
	}
	var said []string
	for line := range strings.Lines(log.String()) {
		if _, rest, ok := strings.Cut(line, "runs low"); ok {
			said = append(said, strings.TrimSpace(strings.TrimPrefix(rest, "\"")))
		}
	}
	want := []string{
		"upstream=docker.io remaining=20 limit=100 below_percent=20",
		"upstream=docker.io remaining=5 limit=100 below_percent=5",
		"upstream=docker.io remaining=20 limit=100 below_percent=20",
	}
	if !slices.Equal(said, want) {
		t.Errorf("said %q", said)
	}
}

// TestBudgetOnTheWire: while the limit is spent, requests that count are not sent, and free
// ones are. A registry without limits has no gauges.
func TestBudgetOnTheWire(t *testing.T) {
	t.Parallel()
	up := upstreamtest.New(t, upstreamtest.Options{})
	img := up.AddImage("library/app", "1", upstreamtest.NewImage(1, 10))
	m := NewMetrics()
	r, err := New(Config{Name: "docker.io", URLs: []string{up.URL}}, m, textLog(&strings.Builder{}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Close)
	head := func() error {
		_, err := r.Head(t.Context(), KindManifest, "library/app", "1")
		return err
	}
	get := func() error {
		c, err := r.Open(t.Context(), KindManifest, "library/app", img.Index.Digest, Span{})
		if err == nil {
			err = c.Body.Close()
		}
		return err
	}
	if err := errors.Join(head(), get()); err != nil {
		t.Fatal(err)
	}
	if n := testutil.CollectAndCount(m.limit) + testutil.CollectAndCount(m.remaining); n > 0 {
		t.Errorf("%d gauges for a registry without limits", n)
	}
	script := up.Fault(upstreamtest.Match{Op: upstreamtest.GetManifest}, upstreamtest.Status(429, "Retry-After", "600"))
	for range 5 {
		err := get()
		var e *Error
		if !errors.Is(err, ErrRateLimited) || !errors.As(err, &e) || e.RetryAfter > 600*time.Second || e.RetryAfter < 590*time.Second {
			t.Errorf("%v", err)
		}
		if err := head(); err != nil {
			t.Error(err)
		}
	}
	if n := script.Applied(); n != 1 {
		t.Errorf("asked %d times while spent, want once", n)
	}
}
