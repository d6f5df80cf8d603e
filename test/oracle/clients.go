package oracle

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2"
	"oras.land/oras-go/v2/content"
	"oras.land/oras-go/v2/content/memory"
	orasremote "oras.land/oras-go/v2/registry/remote"
	"oras.land/oras-go/v2/registry/remote/auth"
	"oras.land/oras-go/v2/registry/remote/retry"
)

// Pulled is the content that a client got.
type Pulled struct {
	Root     digest.Digest
	Contents map[digest.Digest][]byte
}

// Client pulls the image of a repository's [Tag] with a library, over plain HTTP from host.
type Client struct {
	Name string
	Pull func(ctx context.Context, hc *http.Client, host, repo string) (Pulled, error)
}

// Clients are the clients with small libraries.
func Clients() []Client {
	return []Client{{"go-containerregistry", pullCrane}, {"oras-go", pullOras}, {"plain HTTP", pullPlain}}
}

// children are the descriptors in a manifest.
func children(manifest []byte) ([]ocispec.Descriptor, error) {
	var m struct {
		Config            *ocispec.Descriptor
		Layers, Manifests []ocispec.Descriptor
	}
	if err := json.Unmarshal(manifest, &m); err != nil {
		return nil, fmt.Errorf("read manifest: %w", err)
	}
	list := append(m.Layers, m.Manifests...)
	if m.Config != nil {
		list = append(list, *m.Config)
	}
	return list, nil
}

// IsManifest reports whether a media type is that of a manifest or an index.
func IsManifest(mediaType string) bool {
	return strings.Contains(mediaType, "manifest") || strings.Contains(mediaType, "index")
}

// Walk fetches all content below a root.
func Walk(root ocispec.Descriptor, fetch func(ocispec.Descriptor) ([]byte, error)) (Pulled, error) {
	p := Pulled{Root: root.Digest, Contents: map[digest.Digest][]byte{}}
	for todo := []ocispec.Descriptor{root}; len(todo) > 0; {
		d := todo[0]
		todo = todo[1:]
		b, err := fetch(d)
		if err != nil {
			return p, fmt.Errorf("%s %s: %w", d.MediaType, d.Digest, err)
		}
		p.Contents[d.Digest] = b
		if IsManifest(d.MediaType) {
			more, err := children(b)
			if err != nil {
				return p, err
			}
			todo = append(todo, more...)
		}
	}
	return p, nil
}

func pullCrane(ctx context.Context, hc *http.Client, host, repo string) (Pulled, error) {
	ref, err := name.ParseReference(host+"/"+repo+":"+Tag, name.Insecure)
	if err != nil {
		return Pulled{}, err
	}
	options := []remote.Option{
		remote.WithContext(ctx), remote.WithTransport(hc.Transport),
		remote.WithRetryBackoff(remote.Backoff{Duration: 10 * time.Millisecond, Factor: 2, Steps: 3}),
	}
	puller, err := remote.NewPuller(options...)
	if err != nil {
		return Pulled{}, err
	}
	root, err := puller.Get(ctx, ref)
	if err != nil {
		return Pulled{}, err
	}
	return Walk(ocispec.Descriptor{MediaType: string(root.MediaType), Digest: digest.Digest(root.Digest.String())}, func(d ocispec.Descriptor) ([]byte, error) {
		if string(d.Digest) == root.Digest.String() {
			return root.Manifest, nil
		}
		at := ref.Context().Digest(string(d.Digest))
		if IsManifest(d.MediaType) {
			child, err := puller.Get(ctx, at)
			if err != nil {
				return nil, err
			}
			return child.Manifest, nil
		}
		layer, err := puller.Layer(ctx, at)
		if err != nil {
			return nil, err
		}
		return ReadAll(layer.Compressed())
	})
}

// ReadAll reads and closes a body.
func ReadAll(r io.ReadCloser, err error) ([]byte, error) {
	if err != nil {
		return nil, err
	}
	b, err := io.ReadAll(r)
	return b, errors.Join(err, r.Close())
}

func pullOras(ctx context.Context, hc *http.Client, host, repo string) (Pulled, error) {
	from, err := orasremote.NewRepository(host + "/" + repo)
	if err != nil {
		return Pulled{}, err
	}
	from.PlainHTTP = true
	quick := func() retry.Policy {
		return &retry.GenericPolicy{Retryable: retry.DefaultPredicate, Backoff: retry.DefaultBackoff, MinWait: 10 * time.Millisecond, MaxWait: 50 * time.Millisecond, MaxRetry: 3}
	}
	from.Client = &auth.Client{Client: &http.Client{Transport: &retry.Transport{Base: hc.Transport, Policy: quick}}, Cache: auth.NewCache()}
	to := memory.New()
	root, err := oras.Copy(ctx, from, Tag, to, Tag, oras.DefaultCopyOptions)
	if err != nil {
		return Pulled{}, err
	}
	return Walk(root, func(d ocispec.Descriptor) ([]byte, error) { return content.FetchAll(ctx, to, d) })
}

// pullPlain accepts every complete body without a check. It tests what the mirror lets
// through, not direct pulls.
func pullPlain(ctx context.Context, hc *http.Client, host, repo string) (Pulled, error) {
	to, err := name.NewRepository(host+"/"+repo, name.Insecure)
	if err != nil {
		return Pulled{}, err
	}
	authorized, err := transport.NewWithContext(ctx, to.Registry, authn.Anonymous, hc.Transport, []string{to.Scope(transport.PullScope)})
	if err != nil {
		return Pulled{}, err
	}
	get := func(path string) ([]byte, string, error) {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+host+"/v2/"+repo+path, nil)
		if err != nil {
			return nil, "", err
		}
		req.Header.Set("Accept", "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json, */*")
		resp, err := (&http.Client{Transport: authorized}).Do(req) //nolint:bodyclose // ReadAll does
		if err != nil {
			return nil, "", err
		}
		b, err := ReadAll(resp.Body, nil)
		if err == nil && resp.StatusCode != http.StatusOK {
			err = errors.New(resp.Status)
		}
		return b, resp.Header.Get("Content-Type"), err
	}
	first, mediaType, err := get("/manifests/" + Tag)
	if err != nil {
		return Pulled{}, err
	}
	root := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(first)}
	if !IsManifest(mediaType) {
		root.MediaType = ocispec.MediaTypeImageIndex // so that Walk parses it
	}
	return Walk(root, func(d ocispec.Descriptor) ([]byte, error) {
		switch {
		case d.Digest == root.Digest:
			return first, nil
		case IsManifest(d.MediaType):
			b, _, err := get("/manifests/" + string(d.Digest))
			return b, err
		default:
			b, _, err := get("/blobs/" + string(d.Digest))
			return b, err
		}
	})
}
