//go:build e2e

package e2e

import (
	"bytes"
	"io"
	"net/http"
	"runtime"
	"sync"
	"testing"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/opencontainers/go-digest"

	"github.com/cachalot-registry/cachalot/upstream/upstreamtest"
)

// transport is go-containerregistry in this process. It has no mirror support.
type transport struct {
	mirror *mirror
	http   *http.Transport

	mu  sync.Mutex // guards got
	got map[digest.Digest][]byte
}

func newTransport(t *testing.T, m *mirror) *transport {
	t.Helper()
	c := &transport{mirror: m, http: &http.Transport{}, got: map[digest.Digest][]byte{}}
	t.Cleanup(c.http.CloseIdleConnections)
	return c
}

func (c *transport) pull(t *testing.T, image string) error {
	t.Helper()
	ref, err := name.ParseReference(c.mirror.below(image), name.Insecure)
	check(t, err)
	options := []remote.Option{
		remote.WithContext(t.Context()), remote.WithTransport(c.http),
		remote.WithPlatform(v1.Platform{OS: "linux", Architecture: runtime.GOARCH}),
	}
	if c.mirror.login != "" {
		options = append(options, remote.WithAuth(&authn.Basic{Username: user, Password: password}))
	}
	desc, err := remote.Get(ref, options...)
	if err != nil {
		return err
	}
	c.keep(desc.Manifest)
	img, err := desc.Image()
	if err != nil {
		return err
	}
	return c.read(img)
}

// read reads all content of an image.
func (c *transport) read(img v1.Image) error {
	manifest, err := img.RawManifest()
	if err != nil {
		return err
	}
	config, err := img.RawConfigFile()
	if err != nil {
		return err
	}
	c.keep(manifest)
	c.keep(config)
	list, err := img.Layers()
	if err != nil {
		return err
	}
	for _, l := range list {
		r, err := l.Compressed()
		if err != nil {
			return err
		}
		b, err := io.ReadAll(r)
		r.Close()
		if err != nil {
			return err
		}
		c.keep(b)
	}
	return nil
}

func (c *transport) keep(b []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.got[digest.FromBytes(b)] = b
}

func (c *transport) remove(*testing.T, string) { clear(c.got) }

func (c *transport) holds(t *testing.T, _ string, want upstreamtest.Image) {
	t.Helper()
	for _, b := range all(want) {
		if !bytes.Equal(c.got[b.Digest], b.Bytes) {
			t.Errorf("%s: %d bytes that differ from the %d pushed", b.Digest, len(c.got[b.Digest]), b.Size)
		}
	}
}
