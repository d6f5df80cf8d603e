package bounds

import (
	"bytes"
	"context"
	"encoding/json"
	"time"
)

const (
	// heavy is how long a body is, in bytes, that keeps a processor busy for more than the
	// millisecond in which others notice nothing.
	heavy = 64 << 10
	// restShare is for how much longer than the work a processor is left to others after it,
	// at least.
	restShare = 3
	// stretch bounds what others wait for the work: at a random time half of what it takes.
	// With rests that grow with its square, half of stretch is the mean of all times.
	stretch = time.Millisecond / 2
	// maxRest is the end of that growth: what takes so long has not had its processor alone.
	maxRest = time.Second
	// perElement is what an element of a list or an object takes in memory, in bytes, where
	// JSON becomes Go's values: a header, more than once while its list grows, and what it
	// says.
	perElement = 64
)

// Work runs f on a body of so many bytes; -1: of any number. Where they are many it keeps
// a processor busy: so it does on half of the processors at most, for a quarter of their
// time and less where it takes long at a stretch, and waits for its turn as long as ctx. Who
// wants something small has the others. A nil Memory has no bound.
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

// rest is how long a processor is left to others after work that took so long.
func rest(took time.Duration) time.Duration {
	squared := time.Duration(float64(took) * float64(took) / float64(stretch))
	return max(restShare*took, min(squared, maxRest))
}

// turn waits until work may begin.
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

// Unmarshal is [json.Unmarshal] within the account of ctx, or [ErrNoMemory]: a million
// elements that say nothing take little of the text, and many times that once parsed.
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
