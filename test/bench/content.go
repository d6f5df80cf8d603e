package main

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"github.com/cachalot-registry/cachalot/upstream/upstreamtest"
)

const (
	repository = "library/bench"
	earlier    = "library/earlier" // pulled before the cold work
	tag        = "latest"

	mib = 1 << 20
	gib = 1 << 30
)

// content is an image of random bytes. The same seed and sizes give the same image.
type content struct {
	upstreamtest.Image
	spec ImageSpec
}

// warmContent is the content of the warm works. Its layer of 64 MiB is the blob. Ten small
// layers give the manifest a realistic length.
func warmContent(blobSize int) *content {
	sizes := []int{blobSize}
	for range 10 {
		sizes = append(sizes, 1024)
	}
	return &content{upstreamtest.NewImage(1, sizes...), ImageSpec{Seed: 1, Sizes: sizes}}
}

// paths maps a registry's paths to the content's parts.
func (c *content) paths() map[string]upstreamtest.Content {
	prefix := "/v2/" + repository
	m := map[string]upstreamtest.Content{
		prefix + "/manifests/" + tag:                        c.Index,
		prefix + "/manifests/" + c.Index.Digest.String():    c.Index,
		prefix + "/manifests/" + c.Manifest.Digest.String(): c.Manifest,
	}
	for _, b := range c.Blobs() {
		m[prefix+"/blobs/"+b.Digest.String()] = b
	}
	return m
}

// writeFiles writes a folder for a server of static files.
func (c *content) writeFiles(dir string) error {
	for path, part := range c.paths() {
		file := filepath.Join(dir, filepath.FromSlash(path))
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(file, part.Bytes, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// push pushes the image to a registry, each blob in one request (distribution-spec 1.1,
// "Pushing a blob monolithically").
func (c *content) push(ctx context.Context, base string) error {
	base = strings.TrimSuffix(base, "/")
	client := httpClient()
	defer client.CloseIdleConnections()
	send := func(method, to, mediaType string, body []byte) (*url.URL, error) {
		req, err := http.NewRequestWithContext(ctx, method, to, bytes.NewReader(body))
		if err != nil {
			return nil, err
		}
		req.Header.Set("Content-Type", mediaType)
		resp, err := client.Do(req)
		if err != nil {
			return nil, err
		}
		_ = resp.Body.Close()
		if resp.StatusCode >= http.StatusMultipleChoices {
			return nil, fmt.Errorf("%s %s: %s", method, to, resp.Status)
		}
		return req.URL.Parse(resp.Header.Get("Location"))
	}
	for _, b := range c.Blobs() {
		to, err := send(http.MethodPost, base+"/v2/"+repository+"/blobs/uploads/", "application/octet-stream", nil)
		if err != nil {
			return err
		}
		query := to.Query()
		query.Set("digest", b.Digest.String())
		to.RawQuery = query.Encode()
		if _, err := send(http.MethodPut, to.String(), "application/octet-stream", b.Bytes); err != nil {
			return err
		}
	}
	manifests := base + "/v2/" + repository + "/manifests/"
	if _, err := send(http.MethodPut, manifests+c.Manifest.Digest.String(), c.Manifest.MediaType, c.Manifest.Bytes); err != nil {
		return err
	}
	_, err := send(http.MethodPut, manifests+tag, c.Index.MediaType, c.Index.Bytes)
	return err
}
