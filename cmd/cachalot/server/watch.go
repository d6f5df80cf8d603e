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

// Watch sends a SIGHUP whenever the content of a file has changed since the
// call, until ctx ends or stop is called. It reads the file rather than look at
// its times: in a ConfigMap it is a link into a folder that is replaced.
func Watch(ctx context.Context, file string, signals chan<- os.Signal) (stop func()) {
	before, _ := os.ReadFile(file) // Run says what is wrong with it
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
				continue // it may be being replaced
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
