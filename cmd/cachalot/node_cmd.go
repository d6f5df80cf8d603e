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
		Short: "Keep a mirror in this machine's containerd configuration",
		Long: `node keeps the mirror in containerd's hosts.toml files while it runs and the mirror
answers. It asks the mirror every 10 seconds. After three failures in a row it
removes the mirror from the files, and adds it again when the mirror answers.
SIGTERM and SIGINT remove it too. node is meant for a DaemonSet of Kubernetes, and
works on any machine with containerd 1.5 or later.

Other content of the files stays. A registry with a folder of its own does not use
the mirror, unless --registry names it.`,
		Example: `  cachalot node --mirror http://192.0.2.7:5000
  cachalot node --mirror http://192.0.2.7:5000 --config-path /var/lib/rancher/k3s/agent/etc/containerd/certs.d`,
		// Checked in Args, so that an error counts as one of the command line (exit code 2).
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
	f.StringVar(&cfg.Mirror, "mirror", "", "the mirror's `URL` for this machine, without /v2; default: $CACHALOT_MIRROR")
	f.StringVar(&cfg.CA, "ca", "", "`FILE` with the CA (PEM) of an https mirror, copied to a folder that containerd reads; default: the system's CAs")
	f.StringVar(&cfg.Dir, "config-path", "/etc/containerd/certs.d", "the `FOLDER` in config_path of containerd's configuration")
	f.StringArrayVar(&cfg.Registries, "registry", nil, "a registry's `NAME`, such as quay.io; default: all without a folder of their own")
	f.StringVar(&cfg.Owner, "owner", "mirror", "`NAME` that marks this mirror's lines in the files")
	f.BoolVar(&check, "check", false, "only check whether the files have the mirror: exit with 0 if so, with 1 if not")
	return cmd
}
