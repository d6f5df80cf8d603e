package main

import (
	"errors"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/cachalot-registry/cachalot/cmd/cachalot/server"
)

func newServe() *cobra.Command {
	var file string
	var watch bool
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Run the mirror",
		Long: `serve runs the mirror in the foreground. Without a configuration file it mirrors the
well-known public registries and stores its cache in /var/lib/cachalot, or in the
user's cache folder if that is not writable.

SIGTERM and SIGINT let running responses end, within shutdown_timeout; a second
signal stops at once. SIGHUP reloads the configuration.`,
		// Checked in Args, so that the error counts as one of the command line (exit code 2).
		Args: func(cmd *cobra.Command, args []string) error {
			if watch && file == "" {
				return errors.New("--watch: name the file to watch with --config FILE")
			}
			return cobra.NoArgs(cmd, args)
		},
		RunE: func(cmd *cobra.Command, _ []string) error {
			signals := make(chan os.Signal, 4)
			signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP)
			defer signal.Stop(signals)
			if watch {
				defer server.Watch(cmd.Context(), file, signals)()
			}
			return server.Run(cmd.Context(), file, currentBuild(), signals, cmd.ErrOrStderr())
		},
	}
	cmd.Flags().StringVar(&file, "config", "", "configuration `FILE`; default: built-in values, as in config.yml")
	cmd.Flags().BoolVar(&watch, "watch", false, "reload the configuration when FILE changes, as after SIGHUP; for a ConfigMap of Kubernetes")
	return cmd
}
