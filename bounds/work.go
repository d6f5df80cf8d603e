package bounds

import (
	"bytes"
	"context"
	"encoding/json"
	"time"
)

const (
	// heavy is the length, in bytes, from which work on a body keeps a processor busy for
	// more than a millisecond. Others do not notice a shorter time.
	heavy = 64 << 10
	// restShare: after the work, the processor is left to others for at least restShare
	// times as long.
	restShare = 3
	// stretch bounds how long others wait for the work: at a random time during it, half of
	// its duration. As the pauses after it grow with the square of the duration, the mean
	// over all times is half of stretch.
	stretch = time.Millisecond / 2
	// maxRest is the end of that growth: work that takes so long has shared its processor.
	maxRest = time.Second
	// perElement is the memory that an element of a JSON list or object takes as a Go value,
	// in bytes: a header, which is there more than once while the list grows, and its
	// content.
	perElement = 64
)

// Work runs f on a body of so many bytes; -1: of any number. Work on a long body keeps a
// processor busy. So it uses at most half of the processors, for a quarter of their time,
// or less if it takes long at a stretch, and waits for its turn until ctx ends. Work on
// small bodies has the other processors. A nil Memory has no bound.
func (m *Memory) Work(ctx context.Context, bytes int64, f func()) error {
	if m != nil && (bytes < 0 || bytes >= heavy) {
		if err := m.turn(ctx); err != nil {
			return err
		}
		began := time.Now()
		defer func() {
			now := time.Now()
			m.turns <- now.Add(rest(now.Sub(began)))
		}()
	}
	f()
	return nil
}

// rest returns how long a processor is left to others after work that took so long.
func rest(took time.Duration) time.Duration {
	squared := time.Duration(float64(took) * float64(took) / float64(stretch))
	return max(restShare*took, min(squared, maxRest))
}

// turn waits until heavy work may begin.
func (m *Memory) turn(ctx context.Context) error {
	select {
	case from := <-m.turns:
		rested := time.NewTimer(time.Until(from))
		defer rested.Stop()
		select {
		case <-rested.C:
			return nil
		case <-ctx.Done():
			m.turns <- from
		}
	case <-ctx.Done():
	}
	return context.Cause(ctx)
}

// Work is [Memory.Work] of the account of ctx.
func Work(ctx context.Context, bytes int, f func()) error {
	var m *Memory
	if a, _ := ctx.Value(accountKey{}).(*account); a != nil {
		m = a.memory
	}
	return m.Work(ctx, int64(bytes), f)
}

// Unmarshal is [json.Unmarshal] within the account of ctx; it may return [ErrNoMemory]. A
// million empty elements are a short text, and take many times that when parsed.
func Unmarshal(ctx context.Context, text []byte, into any) error {
	if err := Charge(ctx, perElement*bytes.Count(text, []byte(","))); err != nil {
		return err
	}
	var invalid error
	if err := Work(ctx, len(text), func() { invalid = json.Unmarshal(text, into) }); err != nil {
		return err
	}
	return invalid
}
