// Package task isolates panics. A panic ends the work of its goroutine, such as a
// request, a download or a check, and is reported with its stack. The process continues
// with all other work.
package task

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime/debug"
	"sync/atomic"
	"time"
)

// PanicError is a panic as the error of the work in which it happened.
type PanicError struct {
	Work  string // what was being done, such as "download"
	Value any    // what panic was called with
	Stack []byte // of the goroutine, as [debug.Stack] gives it
}

// Error names the work only: the value may hold what clients must not see.
func (e *PanicError) Error() string { return e.Work + ": internal error; the log has its stack" }

// Public returns the text for clients.
func (e *PanicError) Public() string { return e.Error() }

// report is the function that was given to [OnPanic].
//
//nolint:gochecknoglobals // a panic ends a process, so one process has one
var report atomic.Pointer[func(*PanicError)]

// OnPanic sets the function that is called with each panic, in the goroutine that panicked.
// Without it panics are written to standard error. There is one function for the process,
// because a panic would end the process.
func OnPanic(f func(*PanicError)) { report.Store(&f) }

// Recovered reports the value that recover has returned, and returns it as an error. It is
// for code that must call recover itself.
func Recovered(work string, value any) *PanicError {
	e := &PanicError{Work: work, Value: value, Stack: debug.Stack()}
	if f := report.Load(); f != nil {
		(*f)(e)
	} else {
		fmt.Fprintf(os.Stderr, "panic in %s: %v\n%s", e.Work, e.Value, e.Stack)
	}
	return e
}

// Try calls f and returns its error, or a [*PanicError].
func Try(work string, f func() error) (err error) {
	defer func() {
		if value := recover(); value != nil {
			err = Recovered(work, value)
		}
	}()
	return f()
}

// Guard returns f with panics recovered as in [Try], for go statements and the like.
func Guard(work string, f func()) func() {
	return func() {
		_ = Try(work, func() error { f(); return nil }) // Try has reported it
	}
}

// A task of [Keep] that has panicked runs again after a pause, which doubles from
// firstPause up to lastPause.
const (
	firstPause = time.Second
	lastPause  = time.Minute
)

// Keep returns f with panics recovered as in [Try]. After a panic it calls f again, until
// ctx ends: it is for work that the process needs as long as it runs.
func Keep(ctx context.Context, work string, f func()) func() {
	return func() {
		for pause := firstPause; ; pause = min(2*pause, lastPause) {
			err := Try(work, func() error { f(); return nil })
			if _, panicked := errors.AsType[*PanicError](err); !panicked {
				return
			}
			select {
			case <-ctx.Done():
				return
			case <-time.After(pause):
			}
		}
	}
}
