package more

import (
	"context"
	"net/http"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/cachalot-registry/cachalot/test/oracle"
)

func pullContainerd(ctx context.Context, hc *http.Client, host, repo string) (oracle.Pulled, error) {
	resolver := docker.NewResolver(docker.ResolverOptions{Hosts: docker.ConfigureDefaultRegistries(
		docker.WithPlainHTTP(docker.MatchAllHosts), docker.WithClient(hc),
		docker.WithAuthorizer(docker.NewDockerAuthorizer(docker.WithAuthClient(hc))),
	)})
	at, root, err := resolver.Resolve(ctx, host+"/"+repo+":"+oracle.Tag)
	if err != nil {
		return oracle.Pulled{}, err
	}
	fetcher, err := resolver.Fetcher(ctx, at)
	if err != nil {
		return oracle.Pulled{}, err
	}
	return oracle.Walk(root, func(d ocispec.Descriptor) ([]byte, error) {
		return verified(d)(oracle.ReadAll(fetcher.Fetch(ctx, d)))
	})
}
