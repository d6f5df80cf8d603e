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

// PanicError is a panic that has become the error of the work it happened in.
type PanicError struct {
	Work  string // what was being done, such as "download"
	Value any    // what panic was called with
	Stack []byte // of the goroutine, as [debug.Stack] gives it
}

// Error names the work only: the value may hold what clients must not see.
func (e *PanicError) Error() string { return e.Work + ": internal error; the log has its stack" }

// Public is what a client is told.
func (e *PanicError) Public() string { return e.Error() }

// report is what [OnPanic] was given.
//
//nolint:gochecknoglobals // a panic ends a process, so one process has one
var report atomic.Pointer[func(*PanicError)]

// OnPanic has f told of each panic, in the goroutine that panicked. Without it they
// are written to the standard error. There is one for the process, as there is one
// process that a panic would end.
func OnPanic(f func(*PanicError)) { report.Store(&f) }

// Recovered reports what recover has returned, and makes it an error. It is for those
// who must call recover themselves.
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

// Guard returns f with the boundary, for go statements and the like.
func Guard(work string, f func()) func() {
	return func() {
		_ = Try(work, func() error { f(); return nil }) // it is reported
	}
}

// A task of [Keep] that has panicked runs again after a pause, which doubles from
// firstPause up to lastPause.
const (
	firstPause = time.Second
	lastPause  = time.Minute
)

// Keep returns f with the boundary, and calls it again after a panic until ctx ends:
// for what the process needs as long as it runs.
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
