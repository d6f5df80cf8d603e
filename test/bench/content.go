package main

import (
	"os"
	"path/filepath"

	"github.com/cachalot-registry/cachalot/upstream/upstreamtest"
)

const (
	repository = "library/bench"
	tag        = "latest"

	mib = 1 << 20
	gib = 1 << 30
)

// content is an image of random bytes; the same seed and sizes make the same one.
type content struct {
	upstreamtest.Image
	spec ImageSpec
}

// warmContent is what the warm works ask for. Its layer of 64 MiB is the blob;
// ten small ones make the manifest as long as manifests are.
func warmContent(blobSize int) *content {
	sizes := []int{blobSize}
	for range 10 {
		sizes = append(sizes, 1024)
	}
	return &content{upstreamtest.NewImage(1, sizes...), ImageSpec{Seed: 1, Sizes: sizes}}
}

// paths are where a registry serves each part.
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

// writeFiles makes a folder that a server of static files can serve.
func (c *content) writeFiles(dir string) error {
	for path, part := range c.paths() {
		file := filepath.Join(dir, filepath.FromSlash(path))
		if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
			return err
		}
		if err := os.WriteFile(file, part.Bytes, 0o600); err != nil {
			return err
		}
	}
	return nil
}
