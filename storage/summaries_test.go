package storage

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

// TestSummaries: a Summary is returned again for summaryAge, or for ten times as long as it
// took.
func TestSummaries(t *testing.T) {
	t.Parallel()
	errIndex := errors.New("cannot be read")
	for name, tc := range map[string]struct {
		takes  time.Duration
		err    error
		before func(*summaries) // before the second get
		taken  int              // Summaries taken by two gets
	}{
		"at once":        {before: func(*summaries) {}, taken: 1},
		"young":          {before: func(*summaries) { time.Sleep(summaryAge - 1) }, taken: 1},
		"old":            {before: func(*summaries) { time.Sleep(summaryAge) }, taken: 2},
		"took long":      {takes: time.Minute, before: func(*summaries) { time.Sleep(10*time.Minute - 1) }, taken: 1},
		"took long, old": {takes: time.Minute, before: func(*summaries) { time.Sleep(10 * time.Minute) }, taken: 2},
		"invalidated":    {before: (*summaries).invalidate, taken: 2},
		"failed":         {err: errIndex, before: func(*summaries) {}, taken: 2},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				taken := 0
				m := newSummaries(func(context.Context) (Summary, error) {
					taken++
					time.Sleep(tc.takes)
					return Summary{Taken: time.Now()}, tc.err
				})
				first, err := m.get(t.Context())
				if !errors.Is(err, tc.err) {
					t.Fatal(err)
				}
				tc.before(m)
				second, err := m.get(t.Context())
				if !errors.Is(err, tc.err) {
					t.Fatal(err)
				}
				if taken != tc.taken || taken == 1 && !second.Taken.Equal(first.Taken) {
					t.Errorf("%d taken", taken)
				}
			})
		})
	}
}

// TestSummariesTogether: callers wait for a Summary that is being taken, and can give up.
func TestSummariesTogether(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		taken := 0
		m := newSummaries(func(context.Context) (Summary, error) {
			taken++
			time.Sleep(time.Second)
			return Summary{}, nil
		})
		for range 3 {
			go func() {
				if _, err := m.get(t.Context()); err != nil {
					t.Error(err)
				}
			}()
		}
		synctest.Wait()
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := m.get(ctx); !errors.Is(err, context.Canceled) {
			t.Errorf("%v", err)
		}
		time.Sleep(time.Second)
		synctest.Wait()
		if taken != 1 {
			t.Errorf("%d taken for three callers", taken)
		}
	})
}
