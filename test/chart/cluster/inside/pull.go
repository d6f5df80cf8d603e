package main

import (
	"context"
	"io"
	"os"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

// pulled is the result of a client's pull, with all content verified.
type pulled struct {
	Digest string `json:"digest"`
	Blobs  int    `json:"blobs"`
	Bytes  int64  `json:"bytes"` // of the blobs
}

func pull(ctx context.Context, ref string) error {
	tag, err := name.NewTag(ref, name.Insecure)
	if err != nil {
		return err
	}
	i, err := remote.Image(tag, remote.WithContext(ctx))
	if err != nil {
		return err
	}
	d, err := i.Digest()
	if err != nil {
		return err
	}
	config, err := i.RawConfigFile()
	if err != nil {
		return err
	}
	p := pulled{Digest: d.String(), Blobs: 1, Bytes: int64(len(config))}
	layers, err := i.Layers()
	if err != nil {
		return err
	}
	for _, l := range layers {
		r, err := l.Compressed()
		if err != nil {
			return err
		}
		n, err := io.Copy(io.Discard, r)
		_ = r.Close() // only read from
		if err != nil {
			return err
		}
		p.Blobs++
		p.Bytes += n
	}
	return writeJSON(os.Stdout, p)
}
