package main

import (
	"maps"
	"os"
	"slices"

	"github.com/cachalot-registry/cachalot/cmd/cachalot/config"
	"github.com/spf13/cobra"

	"github.com/cachalot-registry/cachalot/cmd/cachalot/dind"
)

func newDind() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "dind [ARGUMENTS]",
		Short: "Start the Docker daemon of a docker:dind image, with a mirror",
		Long: `dind is the entrypoint of an image made from docker:dind. It makes dockerd pull
through a mirror, and then runs the base image's own entrypoint, with all
arguments: none, flags of dockerd, "dockerd" with flags, or another command. With
another command, only builders of docker buildx use the mirror.

  CACHALOT_MIRROR       the mirror's URL; unset: nothing is changed
  CACHALOT_DIRECT       registries to ask directly, separated by commas or spaces;
                        GitLab's own (CI_REGISTRY) always are
  CACHALOT_CA           certificates of your own CA (PEM), or the path of their file
  CACHALOT_KEEP_DRIVER  true: DOCKER_DRIVER=overlay2 stays, and docker pull uses the
                        mirror for Docker Hub only

Flags, daemon.json and files in certs.d stay as they are. Each change, and its
reason, goes to standard error.`,
		Example: `  docker run --privileged -e CACHALOT_MIRROR=http://cachalot.example:5000 IMAGE
  docker run --privileged -e CACHALOT_MIRROR=http://cachalot.example:5000 IMAGE --mtu=1400`,
		DisableFlagParsing:    true, // the flags are dockerd's
		DisableFlagsInUseLine: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			// BuildKit's configuration names each registry.
			cfg, err := config.Load("", os.LookupEnv)
			if err != nil {
				return err
			}
			return dind.Run(cmd.Context(), args, slices.Sorted(maps.Keys(cfg.Upstreams)), cmd.ErrOrStderr())
		},
	}
	// cobra's template would list --help, which is dockerd's flag.
	cmd.SetUsageTemplate("Usage:\n  {{.UseLine}}\n\nExamples:\n{{.Example}}\n")
	return cmd
}
