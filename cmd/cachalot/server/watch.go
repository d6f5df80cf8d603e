package server

import (
	"bytes"
	"context"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/cachalot-registry/cachalot/task"
)

// watchEvery is how often a watched file is read. Kubernetes takes a minute to
// bring a changed ConfigMap to a pod.
const watchEvery = 10 * time.Second

// Watch sends a SIGHUP when the content of a file changes, until ctx ends or stop is called. It
// compares the content and not the times: in a ConfigMap the file is a link into a folder that
// is replaced.
func Watch(ctx context.Context, file string, signals chan<- os.Signal) (stop func()) {
	before, _ := os.ReadFile(file) // Run reports the error
	ctx, cancel := context.WithCancel(ctx)
	var watching sync.WaitGroup
	watching.Go(task.Keep(ctx, "watch of the configuration", func() {
		tick := time.NewTicker(watchEvery)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			now, err := os.ReadFile(file)
			if err != nil || bytes.Equal(now, before) {
				continue // a file that is being replaced may be missing
			}
			before = now
			select {
			case <-ctx.Done():
				return
			case signals <- syscall.SIGHUP:
			}
		}
	}))
	return func() {
		cancel()
		watching.Wait()
	}
}
