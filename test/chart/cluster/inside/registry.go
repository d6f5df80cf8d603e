package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"

	"github.com/distribution/distribution/v3/configuration"
	"github.com/distribution/distribution/v3/registry/handlers"
	_ "github.com/distribution/distribution/v3/registry/storage/driver/filesystem"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/sirupsen/logrus"
)

// registry is distribution's registry, with runnable images. It prints its requests, and
// lists them at /requests.
func registry(ctx context.Context, addr string, refs []string) error {
	logrus.SetOutput(io.Discard)
	if err := os.MkdirAll(os.TempDir(), 0o700); err != nil { // the image has no temporary folder
		return err
	}
	dir, err := os.MkdirTemp("", "registry")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }() // it ends with the pod
	config := &configuration.Configuration{Storage: configuration.Storage{
		"filesystem":  configuration.Parameters{"rootdirectory": dir}, // the in-memory driver copies all data at each write
		"maintenance": configuration.Parameters{"uploadpurging": map[any]any{"enabled": false}},
	}}
	config.HTTP.Secret = "secret" // signs upload URLs only
	app := handlers.NewApp(ctx, config)
	if err := fill(ctx, app, refs); err != nil {
		return err
	}
	r := &recorder{next: app, log: slog.New(slog.NewJSONHandler(os.Stdout, nil))}
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", addr)
	if err != nil {
		return err
	}
	server := &http.Server{Handler: r} //nolint:gosec // of a test
	context.AfterFunc(ctx, func() { _ = server.Close() })
	if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// fill pushes the images before the server accepts connections.
func fill(ctx context.Context, app http.Handler, refs []string) error {
	private := httptest.NewServer(app)
	defer private.Close()
	for _, ref := range refs {
		i, err := runnable(ref)
		if err != nil {
			return err
		}
		tag, err := name.NewTag(strings.TrimPrefix(private.URL, "http://") + "/" + ref)
		if err != nil {
			return err
		}
		if err := remote.Write(tag, i, remote.WithContext(ctx)); err != nil {
			return fmt.Errorf("push %s: %w", ref, err)
		}
	}
	return nil
}

// request is a request that the registry got.
type request struct {
	Method string `json:"method"`
	Path   string `json:"path"`
	Agent  string `json:"agent"`
	Status int    `json:"status"`
	Bytes  int64  `json:"bytes"` // of the body
}

type recorder struct {
	next http.Handler
	log  *slog.Logger

	running sync.RWMutex // each request holds it for reading; a writer sees all requests

	mu       sync.Mutex // guards the field below
	requests []request
}

func (r *recorder) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	switch req.URL.Path {
	case "/ready":
		return
	case "/requests":
		r.running.Lock()
		defer r.running.Unlock()
		_ = writeJSON(w, append([]request{}, r.requests...))
		return
	}
	r.running.RLock()
	defer r.running.RUnlock()
	c := &counter{ResponseWriter: w, request: request{Method: req.Method, Path: req.URL.Path, Agent: req.UserAgent(), Status: http.StatusOK}}
	r.next.ServeHTTP(c, req)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.requests = append(r.requests, c.request)
	r.log.Info("request", "method", c.request.Method, "path", c.request.Path, "agent", c.request.Agent, "status", c.request.Status, "bytes", c.request.Bytes)
}

type counter struct {
	http.ResponseWriter
	request request
}

func (c *counter) WriteHeader(status int) {
	c.request.Status = status
	c.ResponseWriter.WriteHeader(status)
}

func (c *counter) Write(p []byte) (int, error) {
	n, err := c.ResponseWriter.Write(p)
	c.request.Bytes += int64(n)
	return n, err
}
