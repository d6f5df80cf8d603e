package storage

import (
	"context"
	"fmt"
	"time"
)

// summaries makes one Summary for all callers that ask at the same time, and returns it
// again for a while.
type summaries struct {
	sumUp func(context.Context) (Summary, error)

	// turn holds a value while one caller makes a Summary, and guards the fields below. It is a
	// channel, so that the others can give up. Only the index's locks are taken under it.
	turn  chan struct{}
	last  *Summary  // nil: none
	until time.Time // last is returned until then
}

func newSummaries(sumUp func(context.Context) (Summary, error)) *summaries {
	return &summaries{sumUp: sumUp, turn: make(chan struct{}, 1)}
}

// get returns the last Summary, or makes one if the last one is too old.
func (m *summaries) get(ctx context.Context) (Summary, error) {
	select {
	case m.turn <- struct{}{}:
		defer func() { <-m.turn }()
	case <-ctx.Done():
		return Summary{}, context.Cause(ctx)
	}
	if m.last != nil && time.Now().Before(m.until) {
		return *m.last, nil
	}
	began := time.Now()
	sum, err := m.sumUp(ctx)
	if err != nil {
		return Summary{}, fmt.Errorf("sum up the index: %w", err)
	}
	m.last, m.until = &sum, time.Now().Add(max(summaryAge, 10*time.Since(began)))
	return sum, nil
}

// invalidate makes the next get make a new Summary.
func (m *summaries) invalidate() {
	m.turn <- struct{}{}
	m.last = nil
	<-m.turn
}
