package bounds

import (
	"bytes"
	"context"
	"encoding/json"
)

const (
	// heavy is how long a body is, in bytes, that keeps a processor busy for more than the
	// millisecond in which others notice nothing.
	heavy = 64 << 10
	// perElement is what an element of a list or an object takes in memory, in bytes, where
	// JSON becomes Go's values: a header, more than once while its list grows, and what it
	// says.
	perElement = 64
)

// Work runs f, which keeps a processor busy, on half of the processors at most: who wants
// something small has the others. It waits for its turn as long as ctx. A nil Memory has
// no bound.
func (m *Memory) Work(ctx context.Context, f func()) error {
	if m != nil {
		if err := m.work.Acquire(ctx, 1); err != nil {
			return err
		}
		defer m.work.Release(1)
	}
	f()
	return nil
}

// Work runs f on a body of so many bytes, as [Memory.Work] of the account of ctx does
// where they are many.
func Work(ctx context.Context, bytes int, f func()) error {
	if a, _ := ctx.Value(accountKey{}).(*account); a != nil && bytes >= heavy {
		return a.memory.Work(ctx, f)
	}
	f()
	return nil
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
