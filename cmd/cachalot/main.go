// Command cachalot is a pull-through mirror of OCI registries.
//
//	main ── cobra ─┬─ serve ───────── server.Run ─► config ─► storage, upstream, proxy ─► two http.Servers
//	               ├─ client ──────── config ─► proxy/clients
//	               ├─ dind ────────── environment ─► dind.Run ─► docker:dind's entrypoint
//	               ├─ node ────────── node.Node ─► containerd's hosts.toml files
//	               ├─ verify ──────── config ─► storage.Verify, or ops.Mirror ─► admin API
//	               ├─ config check ── config
//	               ├─ version
//	               ├─ healthcheck ─── GET /readyz
//	               └─ stats, ls, ... ─ ops.Commands ─► admin API
//
// exitCodes lists the exit codes. verify exits with 1 if it found damage, and with 2
// if it failed.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/cachalot-registry/cachalot/cmd/cachalot/config"
	"github.com/cachalot-registry/cachalot/cmd/cachalot/dind"
	"github.com/cachalot-registry/cachalot/cmd/cachalot/ops"
)

const (
	exitOK     = 0
	exitFailed = ops.Failed
	exitUsage  = ops.Usage
)

// exitCodes is the part of the help below the commands.
const exitCodes = `
Exit codes:
  0  success
  1  failure: the mirror does not answer, some images could not be fetched, blobs
     are damaged
  2  the command line, the configuration or a value in it is wrong; for verify,
     some blobs could not be checked
  3  the content is not stored, or not pinned
  4  the token is missing or wrong
`

// Groups of commands in the help.
const (
	groupRun = "run"
	groupAsk = "ask"
)

func main() { os.Exit(execute(context.Background(), os.Args[1:], os.Stdout, os.Stderr)) }

// execute runs one command line and returns its exit code. It prints the error, if there is
// one; commands do not.
func execute(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	root := newRoot()
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	running := false // while false, errors are about the command line
	root.PersistentPreRun = func(*cobra.Command, []string) { running = true }

	cmd, err := root.ExecuteContextC(ctx)
	if err == nil {
		return exitOK
	}
	if invalid, ok := errors.AsType[*config.Error](err); ok {
		root.PrintErrln(invalid)
		return exitUsage
	}
	if _, ok := errors.AsType[*dind.VariableError](err); ok {
		root.PrintErrf("cachalot: %s\nSee \"cachalot help dind\".\n", strings.ReplaceAll(err.Error(), "\n", "\ncachalot: "))
		return exitUsage
	}
	root.PrintErrf("cachalot: %s\n", strings.TrimSpace(err.Error()))
	if _, ok := errors.AsType[*unverifiedError](err); ok {
		return exitUsage
	}
	if e, ok := errors.AsType[*ops.Error](err); ok && running {
		return e.Code
	}
	if running {
		return exitFailed
	}
	root.PrintErrf("See %q.\n", cmd.CommandPath()+" --help")
	return exitUsage
}

func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:   "cachalot",
		Short: "A pull-through mirror of OCI registries",
		Long: `cachalot is a pull-through mirror of OCI registries. Docker daemons, container
runtimes and build tools ask it for images. It answers from local disk, or fetches
once from Docker Hub or another registry and stores the content.`,
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	root.SetUsageTemplate(root.UsageTemplate() + "{{if not .HasParent}}" + exitCodes + "{{end}}")
	root.AddGroup(&cobra.Group{ID: groupRun, Title: "Run the mirror, and configure its clients:"}, &cobra.Group{ID: groupAsk, Title: "Ask a running mirror:"})
	for _, cmd := range []*cobra.Command{newServe(), newClient(), newDind(), newNode(), newVerify(), newConfig()} {
		cmd.GroupID = groupRun
		root.AddCommand(cmd)
	}
	for _, cmd := range append(ops.Commands(), newHealthcheck()) {
		cmd.GroupID = groupAsk
		root.AddCommand(cmd)
	}
	root.AddCommand(newVersion())
	return root
}

func newConfig() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "config",
		Short: "Work with configuration files",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newSchema(), &cobra.Command{
		Use:   "check FILE",
		Short: "Check a configuration file",
		Long: `check reads a configuration file as serve does, with this environment's variables.
It prints "FILE: ok", or every problem with its line and what to write instead, and
then exits with 2. It sends no request and writes nothing.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if _, err := config.Load(args[0], os.LookupEnv); err != nil {
				return err
			}
			_, err := fmt.Fprintf(cmd.OutOrStdout(), "%s: ok\n", args[0])
			return err
		},
	})
	return cmd
}
