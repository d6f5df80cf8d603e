package main

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/cachalot-registry/cachalot/cmd/cachalot/node"
)

func newNode() *cobra.Command {
	var cfg node.Config
	var check bool
	var n *node.Node
	cmd := &cobra.Command{
		Use:   "node --mirror URL",
		Short: "Keep this machine's containerd pulling through a mirror",
		Long: `node writes the mirror into containerd's hosts.toml files, for as long as it
runs and the mirror answers. It asks the mirror every 10 seconds: after three
failures in a row it takes the mirror out again, and puts it back once it
answers. SIGTERM and SIGINT take it out too. It is meant for a DaemonSet of
Kubernetes, and works for any machine with containerd 1.5 or later.

What else is in the files stays as it is. A registry that has a folder of its own
is not the mirror's, unless --registry names it.`,
		Example: `  cachalot node --mirror http://192.0.2.7:5000
  cachalot node --mirror http://192.0.2.7:5000 --config-path /var/lib/rancher/k3s/agent/etc/containerd/certs.d`,
		// Here, because whatever is wrong here is wrong with the command line.
		Args: func(cmd *cobra.Command, args []string) (err error) {
			if err := cobra.NoArgs(cmd, args); err != nil {
				return err
			}
			cfg.Mirror = cmp.Or(cfg.Mirror, os.Getenv("CACHALOT_MIRROR"))
			n, err = node.New(cfg, slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), nil)))
			if wrong, ok := errors.AsType[*node.ConfigError](err); ok {
				return fmt.Errorf("--%s: %s", wrong.Field, wrong.Reason)
			}
			return err
		},
		RunE: func(cmd *cobra.Command, _ []string) error {
			if check {
				return n.Check()
			}
			ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGTERM, syscall.SIGINT)
			defer stop()
			return n.Run(ctx)
		},
	}
	f := cmd.Flags()
	f.StringVar(&cfg.Mirror, "mirror", "", "the mirror's `URL` as this machine reaches it, without /v2; none: $CACHALOT_MIRROR")
	f.StringVar(&cfg.CA, "ca", "", "`FILE` with the CA (PEM) of an https mirror, which is copied to where containerd reads it; none: the system's")
	f.StringVar(&cfg.Dir, "config-path", "/etc/containerd/certs.d", "the `FOLDER` that config_path in containerd's configuration names")
	f.StringArrayVar(&cfg.Registries, "registry", nil, "a registry's `NAME`, such as quay.io; none: all that have no folder of their own")
	f.StringVar(&cfg.Owner, "owner", "mirror", "`NAME` that tells this mirror's lines from those of another")
	f.BoolVar(&check, "check", false, "only look whether the files have the mirror: exit with 0 if so, and with 1 if not")
	return cmd
}
