package more

import (
	"context"
	"errors"
	"net/http"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"go.podman.io/image/v5/docker"
	"go.podman.io/image/v5/manifest"
	"go.podman.io/image/v5/pkg/blobinfocache/none"
	"go.podman.io/image/v5/types"

	"github.com/cachalot-registry/cachalot/test/oracle"
)

// pullImage opens its own connections.
func pullImage(ctx context.Context, _ *http.Client, host, repo string) (oracle.Pulled, error) {
	ref, err := docker.ParseReference("//" + host + "/" + repo + ":" + oracle.Tag)
	if err != nil {
		return oracle.Pulled{}, err
	}
	source, err := ref.NewImageSource(ctx, &types.SystemContext{
		DockerInsecureSkipTLSVerify: types.OptionalBoolTrue, // also plain HTTP
		// No configuration of the machine.
		SystemRegistriesConfPath: "/dev/null", SystemRegistriesConfDirPath: "/nonexistent",
		RegistriesDirPath: "/nonexistent", AuthFilePath: "/nonexistent",
	})
	if err != nil {
		return oracle.Pulled{}, err
	}
	defer func() { _ = source.Close() }() // all content is read
	first, mediaType, err := source.GetManifest(ctx, nil)
	if err != nil {
		return oracle.Pulled{}, err
	}
	root := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(first)}
	return oracle.Walk(root, func(d ocispec.Descriptor) ([]byte, error) {
		if d.Digest == root.Digest {
			return first, nil
		}
		if oracle.IsManifest(d.MediaType) {
			b, _, err := source.GetManifest(ctx, &d.Digest)
			if right, bad := manifest.MatchesDigest(b, d.Digest); err == nil && (bad != nil || !right) {
				err = errors.New("other bytes") // copy fails in the same way
			}
			return b, err
		}
		body, _, err := source.GetBlob(ctx, types.BlobInfo{Digest: d.Digest, Size: d.Size}, none.NoCache)
		return verified(d)(oracle.ReadAll(body, err))
	})
}

// verified checks content as a client's store does.
func verified(d ocispec.Descriptor) func([]byte, error) ([]byte, error) {
	return func(b []byte, err error) ([]byte, error) {
		if err == nil && d.Digest.Algorithm().FromBytes(b) != d.Digest {
			err = errors.New("other bytes")
		}
		return b, err
	}
}
