package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/cachalot-registry/cachalot/cmd/cachalot/node"
	"github.com/cachalot-registry/cachalot/task"
)

func newNode() *cobra.Command {
	var cfg node.Config
	var check bool
	var listen string
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
the mirror, unless --registry names it.
node also finds out whether containerd reads the files: it has containerd pull an
image from node itself, through a file in the folder. --check and /readyz say what is
wrong and what to do. --containerd none leaves that out, for a containerd without CRI.`,
		Example: `  cachalot node --mirror http://192.0.2.7:5000
  cachalot node --mirror http://192.0.2.7:5000 --check
  cachalot node --mirror http://192.0.2.7:5000 --config-path /etc/containerd/certs.d --containerd none`,
		// Checked in Args, so that an error counts as one of the command line (exit code 2).
		Args: func(cmd *cobra.Command, args []string) (err error) {
			if err := cobra.NoArgs(cmd, args); err != nil {
				return err
			}
			cfg.Mirror = cmp.Or(cfg.Mirror, os.Getenv("CACHALOT_MIRROR"))
			log := slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), nil))
			if check {
				log = slog.New(slog.DiscardHandler) // the error says it all
			}
			n, err = node.New(cfg, log)
			if wrong, ok := errors.AsType[*node.ConfigError](err); ok {
				return fmt.Errorf("--%s: %s", wrong.Field, wrong.Reason)
			}
			return err
		},
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGTERM, syscall.SIGINT)
			defer stop()
			if check {
				return n.Check(ctx)
			}
			if listen == "" {
				return n.Run(ctx)
			}
			return runNode(ctx, n, listen)
		},
	}
	f := cmd.Flags()
	f.StringVar(&cfg.Mirror, "mirror", "", "the mirror's `URL` for this machine, without /v2; default: $CACHALOT_MIRROR")
	f.StringVar(&cfg.CA, "ca", "", "`FILE` with the CA (PEM) of an https mirror, copied to a folder that containerd reads; default: the system's CAs")
	f.StringVar(&cfg.Dir, "config-path", "", "the `FOLDER` in config_path of containerd's configuration; default: the one that the machine's containerd, K3s, RKE2, k0s or MicroK8s reads")
	f.StringVar(&cfg.Socket, "containerd", "", "the `SOCKET` of containerd's CRI, or none; default: that of the machine's containerd, K3s, RKE2, k0s or MicroK8s")
	f.StringVar(&cfg.Root, "root", "/", "the `FOLDER` where the machine's root folder is mounted")
	f.BoolVar(&cfg.Configure, "configure-containerd", false, "where containerd does not read the folder, write config_path into /etc/containerd/config.toml and restart containerd.service; the end of node takes it out of the file")
	f.StringArrayVar(&cfg.Registries, "registry", nil, "a registry's `NAME`, such as quay.io; default: all without a folder of their own")
	f.StringVar(&cfg.Owner, "owner", "mirror", "`NAME` that marks this mirror's lines in the files")
	f.StringVar(&cfg.Taint, "remove-taint", "", "the `KEY` of a taint of this Kubernetes node, removed once the node pulls through the mirror; needs $NODE_NAME and a ServiceAccount")
	f.DurationVar(&cfg.ExitAfter, "exit-after", 0, "end with an error after this `TIME` without an answer of the mirror, to be started again with its new address; default: never")
	f.StringVar(&listen, "listen", "", "`ADDRESS` for /readyz and /metrics, such as 127.0.0.1:5009; default: none")
	f.BoolVar(&check, "check", false, "only check whether containerd reads the files, and they have the mirror: exit with 0 if so, with 1 if not")
	return cmd
}

// runNode runs n, and serves its state at an address.
func runNode(ctx context.Context, n *node.Node, address string) error {
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", address)
	if err != nil {
		return fmt.Errorf("%w; set --listen to an address of this machine with a free port", err)
	}
	s := &http.Server{Handler: n.Handler(), ReadTimeout: 10 * time.Second, WriteTimeout: 10 * time.Second, MaxHeaderBytes: 16 << 10}
	served := make(chan error, 1)
	go func() { served <- task.Try("listen", func() error { return s.Serve(l) }) }()
	err = n.Run(ctx)
	_ = s.Close()
	if failed := <-served; !errors.Is(failed, http.ErrServerClosed) {
		err = errors.Join(err, failed)
	}
	return err
}
