package main

import (
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"

	"github.com/cachalot-registry/cachalot/cmd/cachalot/server"
)

// version is set by the linker if the build information has neither the module's version nor
// the revision, as in a container build.
var version string

// currentBuild returns the version of this cachalot.
func currentBuild() server.Build {
	b := server.Build{Version: version, Revision: "unknown"}
	info, ok := debug.ReadBuildInfo()
	if ok && b.Version == "" {
		b.Version = info.Main.Version
	}
	if b.Version == "" || b.Version == "(devel)" {
		b.Version = "devel"
	}
	if !ok {
		return b
	}
	modified := false
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			b.Revision = s.Value
		case "vcs.modified":
			modified = s.Value == "true"
		}
	}
	if modified {
		b.Revision += " (modified)"
	}
	return b
}

func newVersion() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			b := currentBuild()
			_, err := fmt.Fprintf(cmd.OutOrStdout(), "cachalot %s\nrevision %s\n%s %s/%s\n",
				b.Version, b.Revision, runtime.Version(), runtime.GOOS, runtime.GOARCH)
			return err
		},
	}
}
