package storage

import (
	"context"
	"fmt"
	"time"
)

// summaries takes a Summary for all who ask at the same time, and gives it out again
// for a while.
type summaries struct {
	sumUp func(context.Context) (Summary, error)

	turn  chan struct{} // holds a value while one caller takes or reads the fields below; a channel, so that the others can give up
	last  *Summary      // nil: none
	until time.Time     // last is given out until then
}

func newSummaries(sumUp func(context.Context) (Summary, error)) *summaries {
	return &summaries{sumUp: sumUp, turn: make(chan struct{}, 1)}
}

// get returns the last Summary, or takes one if it is too old.
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

// invalidate has the next get take a Summary.
func (m *summaries) invalidate() {
	m.turn <- struct{}{}
	m.last = nil
	<-m.turn
}
