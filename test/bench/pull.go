package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"
)

// puller pulls images as dockerd does: HEAD of the tag; index, manifest and config by
// digest; then three layers at a time.
type puller struct {
	client     *http.Client
	base       string // the URL before /v2/
	repository string
	verify     bool // hash the layers, which takes time
	buffer     int

	mu    sync.Mutex // guards token
	token string
}

const (
	layersAtOnce = 3
	bigBuffer    = 1 << 20
)

func newPuller(base string) *puller {
	return &puller{client: httpClient(), base: base, repository: repository, buffer: bigBuffer}
}

// pulled is the result of a pull.
type pulled struct {
	bytes int64 // of layers
	wall  time.Duration
	// first is the time from the start to the first byte of a layer. blob is the time from
	// the layer's request to that byte.
	first, blob time.Duration
}

// pull pulls an image by its tag.
func (p *puller) pull(ctx context.Context) (pulled, error) {
	defer p.client.CloseIdleConnections()
	begin := time.Now()
	resp, err := p.do(ctx, http.MethodHead, "manifests/"+tag, ocispec.MediaTypeImageIndex)
	if err != nil {
		return pulled{}, err
	}
	_ = resp.Body.Close()
	var index ocispec.Index
	if err := p.decode(ctx, "manifests/"+resp.Header.Get("Docker-Content-Digest"), ocispec.MediaTypeImageIndex, &index); err != nil {
		return pulled{}, err
	}
	if len(index.Manifests) == 0 {
		return pulled{}, errors.New("the index is empty")
	}
	var manifest ocispec.Manifest
	if err := p.decode(ctx, "manifests/"+index.Manifests[0].Digest.String(), ocispec.MediaTypeImageManifest, &manifest); err != nil {
		return pulled{}, err
	}
	var config ocispec.Image
	if err := p.decode(ctx, "blobs/"+manifest.Config.Digest.String(), "*/*", &config); err != nil {
		return pulled{}, err
	}
	done, err := p.layers(ctx, begin, manifest.Layers)
	done.wall = time.Since(begin)
	return done, err
}

// layers gets blobs, three at a time.
func (p *puller) layers(ctx context.Context, begin time.Time, list []ocispec.Descriptor) (pulled, error) {
	var mu sync.Mutex // guards all
	var all pulled
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(layersAtOnce)
	for _, l := range list {
		group.Go(func() error {
			asked := time.Now()
			first, err := p.layer(ctx, l)
			mu.Lock()
			defer mu.Unlock()
			all.bytes += l.Size
			if since := first.Sub(begin); all.first == 0 || since < all.first {
				all.first, all.blob = since, first.Sub(asked)
			}
			return err
		})
	}
	err := group.Wait()
	all.wall = time.Since(begin)
	return all, err
}

// layer gets a blob and returns the time of its first byte.
func (p *puller) layer(ctx context.Context, l ocispec.Descriptor) (first time.Time, err error) {
	resp, err := p.do(ctx, http.MethodGet, "blobs/"+l.Digest.String(), "*/*")
	if err != nil {
		return first, err
	}
	defer func() { _ = resp.Body.Close() }()
	buf := make([]byte, p.buffer)
	verifier := l.Digest.Verifier()
	var got int64
	for {
		n, err := resp.Body.Read(buf)
		if n > 0 && got == 0 {
			first = time.Now()
		}
		got += int64(n)
		if p.verify {
			_, _ = verifier.Write(buf[:n]) // a hash never fails
		}
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return first, fmt.Errorf("read %s: %w", l.Digest, err)
		}
	}
	if got != l.Size {
		return first, fmt.Errorf("%s: %d bytes came, it has %d", l.Digest, got, l.Size)
	}
	if p.verify && !verifier.Verified() {
		return first, fmt.Errorf("%s: other bytes came", l.Digest)
	}
	return first, nil
}

func (p *puller) decode(ctx context.Context, path, accept string, v any) error {
	resp, err := p.do(ctx, http.MethodGet, path, accept)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return fmt.Errorf("read %s: %w", path, err)
	}
	if _, reference, _ := strings.Cut(path, "/"); digest.FromBytes(b).String() != reference {
		return fmt.Errorf("%s: other bytes came", path)
	}
	return json.Unmarshal(b, v)
}

// do sends a request for the repository. If the response asks for a token, it gets one and retries.
func (p *puller) do(ctx context.Context, method, path, accept string) (*http.Response, error) {
	ask := func(url, token string) (*http.Response, error) {
		req, err := http.NewRequestWithContext(ctx, method, url, nil)
		if err != nil {
			return nil, err
		}
		req.Header.Set("Accept", accept)
		if token != "" {
			req.Header.Set("Authorization", "Bearer "+token)
		}
		return p.client.Do(req)
	}
	p.mu.Lock()
	token := p.token
	p.mu.Unlock()
	full := p.base + "/v2/" + p.repository + "/" + path
	resp, err := ask(full, token)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode == http.StatusUnauthorized && token == "" {
		_ = resp.Body.Close()
		if token, err = p.authorize(ctx, resp.Header.Get("WWW-Authenticate")); err != nil {
			return nil, err
		}
		if resp, err = ask(full, token); err != nil {
			return nil, err
		}
	}
	if resp.StatusCode != http.StatusOK {
		_ = resp.Body.Close()
		return nil, fmt.Errorf("%s %s: %s", method, full, resp.Status)
	}
	return resp, nil
}

// authorize gets a token for the challenge, and stores it.
func (p *puller) authorize(ctx context.Context, challenge string) (string, error) {
	query := url.Values{}
	for _, m := range regexp.MustCompile(`(\w+)="([^"]*)"`).FindAllStringSubmatch(challenge, -1) {
		query.Set(m[1], m[2])
	}
	realm := query.Get("realm")
	query.Del("realm")
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, realm+"?"+query.Encode(), nil)
	if err != nil {
		return "", err
	}
	resp, err := p.client.Do(req)
	if err != nil {
		return "", fmt.Errorf("get a token: %w", err)
	}
	defer func() { _ = resp.Body.Close() }()
	var answer struct{ Token string }
	if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil || answer.Token == "" {
		return "", fmt.Errorf("get a token: %s: %w", resp.Status, err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.token = answer.Token
	return p.token, nil
}
