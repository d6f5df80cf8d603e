package bounds

import (
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

// TestProcessors: they are lent while work goes on, and for a second after the last of it.
func TestProcessors(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var changes []string
		lends := true
		p := &Processors{
			more: func() bool {
				if lends {
					changes = append(changes, "more")
				}
				return lends
			},
			usual: func() { changes = append(changes, "usual") },
		}
		want := func(when string, want ...string) {
			t.Helper()
			synctest.Wait()
			p.mu.Lock() // it calls more and usual under it
			defer p.mu.Unlock()
			if !slices.Equal(changes, want) {
				t.Errorf("%s: %v, want %v", when, changes, want)
			}
			changes = nil
		}
		first := p.Borrow()
		want("work begins", "more")
		time.Sleep(3 * loanTime)
		want("it goes on")
		second := p.Borrow()
		first()
		time.Sleep(3 * loanTime)
		want("other work goes on")
		second()
		time.Sleep(loanTime / 2)
		p.Borrow()()
		want("more work soon after")
		time.Sleep(loanTime - time.Millisecond)
		want("within a second of the last work")
		time.Sleep(time.Millisecond)
		want("a second after it", "usual")

		lends = false
		limited := p.Borrow()
		want("where a container has a limit")
		lends = true
		p.Borrow()()
		want("where it has none any more", "more")
		time.Sleep(loanTime)
		want("while work of that time goes on")
		limited()
		time.Sleep(loanTime)
		want("when that has ended", "usual")
		var none *Processors
		none.Borrow()()
	})
}
