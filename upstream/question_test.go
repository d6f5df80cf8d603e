package upstream

import (
	"context"
	"net/http"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Head sends a HEAD in the same way as all requests, for tests of that way. Only tests rely on
// a HEAD alone.
func (r *Registry) Head(ctx context.Context, kind Kind, repo, reference string) (ocispec.Descriptor, error) {
	resp, err := r.ask(ctx, content(http.MethodHead, kind, repo, reference))
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	resp.Body.Close()
	return ocispec.Descriptor{MediaType: mediaType(kind, resp), Digest: namedDigest(resp), Size: resp.ContentLength}, nil
}
