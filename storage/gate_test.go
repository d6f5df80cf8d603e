package storage

import (
	"errors"
	"testing"
	"testing/synctest"

	"github.com/opencontainers/go-digest"
)

// hold gives one caller exclusive use of the digest until free.
func (g *gate) hold(d digest.Digest) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.going[d] = make(chan struct{})
}

func (g *gate) free(d digest.Digest) {
	g.mu.Lock()
	defer g.mu.Unlock()
	close(g.going[d])
	delete(g.going, d)
}

// isHeld reports whether a caller has exclusive use of the digest.
func (g *gate) isHeld(d digest.Digest) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.going[d] != nil
}

// add adds a fill to the table. The test runs the fill itself.
func (g *gate) add(f *fill) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.fills.add(f)
}

// TestGate: who gets exclusive use of a digest, and who joins, opens or waits.
func TestGate(t *testing.T) {
	t.Parallel()
	d, sc := digest.FromString("a"), scope()
	elsewhere := Scope{Upstream: sc.Upstream, Repository: "library/b"}
	fillIn := func(g *gate, phase phase) *fill {
		f := newFill(nil, sc, d, nil)
		f.phase = phase
		g.add(f)
		return f
	}
	for name, tc := range map[string]struct {
		before                   func(*gate)
		idle, exclusive, partial bool // which exclusive uses are given
		joins, unlinked, waits   bool // a caller from another repository: joins with a link, is refused without one, or waits
	}{
		"nothing":              {before: func(*gate) {}, idle: true, exclusive: true, partial: true},
		"open":                 {before: func(g *gate) { _, _, _ = g.enter(sc, d, true) }, exclusive: true, partial: true},
		"left":                 {before: func(g *gate) { _, _, _ = g.enter(sc, d, true); g.leave(d) }, idle: true, exclusive: true, partial: true},
		"another is open":      {before: func(g *gate) { _, _, _ = g.enter(sc, digest.FromString("b"), true) }, idle: true, exclusive: true, partial: true},
		"held":                 {before: func(g *gate) { g.hold(d) }, waits: true},
		"held no more":         {before: func(g *gate) { g.hold(d); g.free(d) }, idle: true, exclusive: true, partial: true},
		"downloading":          {before: func(g *gate) { fillIn(g, streaming) }, idle: true, exclusive: true, joins: true, unlinked: true},
		"admitted":             {before: func(g *gate) { fillIn(g, streaming); g.admit(elsewhere.place(), d, "") }, idle: true, exclusive: true, joins: true},
		"verified":             {before: func(g *gate) { fillIn(g, verified) }, joins: true, unlinked: true},
		"about to be stored":   {before: func(g *gate) { g.settle(fillIn(g, streaming)) }, joins: true, unlinked: true},
		"not to be stored":     {before: func(g *gate) { f := fillIn(g, verified); f.keep.NoStore = true; g.settle(f) }, waits: true},
		"shut":                 {before: func(g *gate) { g.shut(fillIn(g, streaming)) }, idle: true, exclusive: true, waits: true},
		"its fill has ended":   {before: func(g *gate) { g.ended(fillIn(g, verified), func() {}) }, idle: true, exclusive: true, partial: true},
		"no more are admitted": {before: func(g *gate) { g.takeAdmitted(fillIn(g, streaming)); g.admit(elsewhere.place(), d, "") }, idle: true, exclusive: true, joins: true, unlinked: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				g := newGate()
				tc.before(g)
				if g.busy(d) == tc.idle {
					t.Errorf("busy: %t", !tc.idle)
				}
				held := func() {
					if !g.isHeld(d) || g.exclusive(d, func() {}) {
						t.Error("two have it at once")
					}
				}
				if idle, exclusive, partial := g.exclusiveIdle(d, held), g.exclusive(d, held), g.exclusivePartial(partialOf(d, sc.Upstream), held); idle != tc.idle ||
					exclusive != tc.exclusive || partial != tc.partial {
					t.Errorf("idle %t, exclusive %t, partial %t", idle, exclusive, partial)
				}
				for _, linked := range []bool{true, false} {
					var f *fill
					var err error
					done := false
					go func() {
						f, _, err = g.enter(elsewhere, d, linked)
						done = true
					}()
					synctest.Wait()
					if done == tc.waits {
						t.Fatalf("linked %t: waits: %t", linked, !done)
					}
					if tc.waits {
						continue
					}
					if wantErr := tc.unlinked && !linked; (err != nil) != wantErr || (f != nil) != (tc.joins && !wantErr) {
						t.Errorf("linked %t: %v, %v", linked, f, err)
					}
				}
				if tc.waits { // until the fill or the hold ends
					for _, f := range g.running() {
						g.ended(f, func() {})
					}
					if g.isHeld(d) {
						g.free(d)
					}
					synctest.Wait()
					if g.opened() != 1 {
						t.Errorf("%d open", g.opened())
					}
				}
				g.close()
				if _, _, err := g.enter(sc, d, true); !errors.Is(err, ErrClosed) {
					t.Errorf("closed: %v", err)
				}
			})
		})
	}
}
