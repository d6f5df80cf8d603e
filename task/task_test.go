package task

import (
	"context"
	"errors"
	"io"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// reports collects the reported panics until the test ends. Tests that use it are not parallel,
// because a process has one reporter.
func reports(t *testing.T) func() []*PanicError {
	t.Helper()
	var mu sync.Mutex // guards all
	var all []*PanicError
	OnPanic(func(e *PanicError) {
		mu.Lock()
		defer mu.Unlock()
		all = append(all, e)
	})
	t.Cleanup(func() { report.Store(nil) })
	return func() []*PanicError {
		mu.Lock()
		defer mu.Unlock()
		return all
	}
}

func TestTry(t *testing.T) {
	reported := reports(t)
	if err := Try("reading", func() error { return io.EOF }); !errors.Is(err, io.EOF) {
		t.Errorf("an error became %v", err)
	}
	if err := Try("reading", func() error { return nil }); err != nil {
		t.Errorf("success became %v", err)
	}
	if got := reported(); len(got) != 0 {
		t.Errorf("reported %v", got)
	}
	err := Try("reading", func() error { panic("a secret") })
	var p *PanicError
	if !errors.As(err, &p) || p.Work != "reading" || p.Value != "a secret" || !strings.Contains(string(p.Stack), "TestTry") {
		t.Fatalf("a panic became %#v", err)
	}
	if strings.Contains(err.Error(), "secret") {
		t.Errorf("its text has the value: %v", err)
	}
	if got := reported(); len(got) != 1 || got[0] != p {
		t.Errorf("reported %v", got)
	}
	if err := Try("reading", func() error { panic(io.EOF) }); errors.Is(err, io.EOF) {
		t.Error("a panic is taken for the error that was its value")
	}
}

func TestGuard(t *testing.T) {
	reported := reports(t)
	var w sync.WaitGroup
	w.Go(Guard("looking", func() {
		none := []string{}
		none[len(none)] = "a bug"
	}))
	w.Wait()
	if got := reported(); len(got) != 1 || got[0].Work != "looking" {
		t.Errorf("reported %v", got)
	}
}

// TestKeep: a function that panics runs again, after longer and longer pauses, until it returns
// or its context ends.
func TestKeep(t *testing.T) {
	reported := reports(t)
	synctest.Test(t, func(t *testing.T) {
		var at []time.Duration
		began := time.Now()
		Keep(t.Context(), "tidying", func() {
			if at = append(at, time.Since(began)); len(at) < 10 {
				panic("again")
			}
		})()
		if len(at) != 10 || at[1] != time.Second || at[2] != 3*time.Second || at[9]-at[8] != time.Minute {
			t.Errorf("it ran at %v", at)
		}
		if n := len(reported()); n != 9 {
			t.Errorf("%d reports", n)
		}

		ctx, cancel := context.WithCancel(t.Context())
		runs := 0
		Keep(ctx, "tidying", func() {
			runs++
			cancel()
			panic("at the end")
		})()
		if runs != 1 {
			t.Errorf("it ran %d times", runs)
		}
	})
}
