package ops

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/cachalot-registry/cachalot/task"
)

// Commands returns the commands for a running mirror.
func Commands() []*cobra.Command {
	return []*cobra.Command{newStats(), newLs(), newInspect(), newTop(), newWarm(), newPin(), newUnpin(), newPurge()}
}

// asking has the flags of most commands: the mirror, and the format of the output.
type asking struct {
	Mirror
	output format
}

func (a *asking) flags(cmd *cobra.Command) *cobra.Command {
	a.output.flag(cmd)
	a.Flags(cmd.Flags())
	return cmd
}

// run returns a RunE that calls do with a client of the mirror.
func (a *asking) run(do func(cmd *cobra.Command, args []string, c *client) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		c, err := a.client()
		if err != nil {
			return err
		}
		defer c.close()
		return do(cmd, args, c)
	}
}

// interruptible returns a context that ends at the first Ctrl-C or SIGTERM, with the cause
// errInterrupted. A second one ends the process.
func interruptible(ctx context.Context) (_ context.Context, stop func()) {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
	ctx, cancel := context.WithCancelCause(ctx)
	go task.Guard("wait for a signal", func() {
		defer signal.Stop(signals)
		select {
		case <-signals:
			cancel(errInterrupted)
		case <-ctx.Done():
		}
	})()
	return ctx, func() { cancel(nil) }
}
