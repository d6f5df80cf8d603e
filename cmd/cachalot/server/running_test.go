package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// patience is how long a test waits for an event.
const patience = 30 * time.Second

// logBook records the log, and lets a test wait for a line.
type logBook struct {
	mu    sync.Mutex // guards the fields below
	text  strings.Builder
	grown chan struct{} // closed and replaced at each write
}

func newLogBook() *logBook { return &logBook{grown: make(chan struct{})} }

func (b *logBook) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	close(b.grown)
	b.grown = make(chan struct{})
	return b.text.Write(p)
}

func (b *logBook) now() (text string, grown <-chan struct{}) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String(), b.grown
}

// forget drops the log so far.
func (b *logBook) forget() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.text.Reset()
}

// wait waits for the first match of the pattern, and returns it.
func (b *logBook) wait(t *testing.T, pattern string) []string {
	t.Helper()
	limit, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	return b.waitUntil(t, limit.Done(), pattern)
}

// waitUntil is wait with a channel that ends it.
func (b *logBook) waitUntil(t *testing.T, over <-chan struct{}, pattern string) []string {
	t.Helper()
	re := regexp.MustCompile(pattern)
	for last := false; ; {
		text, grown := b.now()
		if m := re.FindStringSubmatch(text); m != nil {
			return m
		}
		if last {
			t.Fatalf("%q is not in the log:\n%s", pattern, text)
		}
		select {
		case <-grown:
		case <-over:
			last = true
		}
	}
}

// running is a cachalot in this process.
type running struct {
	url, admin string
	file       string // of the configuration
	log        *logBook
	signals    chan os.Signal
	ended      chan error
	client     *http.Client
}

// start runs serve with this configuration, plus addresses and a folder. It ends with the test.
func start(t *testing.T, cfg string) *running {
	t.Helper()
	dir := t.TempDir()
	transport := &http.Transport{}
	r := &running{
		file:    filepath.Join(dir, "config.yml"),
		log:     newLogBook(),
		signals: make(chan os.Signal, 4),
		ended:   make(chan error, 1),
		client:  &http.Client{Transport: transport},
	}
	r.configure(t, cfg)
	ctx, cancel := context.WithCancel(context.Background())
	exited := make(chan struct{})
	go func() {
		defer close(exited)
		err := Run(ctx, r.file, Build{Version: "v0.0.0-test", Revision: "unknown"}, r.signals, r.log)
		if err != nil {
			_, _ = fmt.Fprintln(r.log, "serve:", err) // a logBook's Write cannot fail
		}
		r.ended <- err
	}()
	t.Cleanup(func() {
		cancel()
		<-exited
		transport.CloseIdleConnections()
	})
	m := r.log.waitUntil(t, exited, `serving; give this to dockerd",? ?"?registry_mirror"?[=:]"?([^\s"]+)"?,? ?"?admin"?[=:]"?([^\s"]+)`)
	r.url, r.admin = m[1], m[2]
	return r
}

func (r *running) configure(t *testing.T, cfg string) {
	t.Helper()
	if !strings.HasPrefix(cfg, "storage:") {
		cfg = "storage: {path: CACHE, min_free: 0}\n" + cfg
	}
	if strings.Contains(cfg, "admin: {") {
		cfg = strings.Replace(cfg, "admin: {", "admin: {listen: 127.0.0.1:0, ", 1)
	} else {
		cfg = "admin: {listen: 127.0.0.1:0}\n" + cfg
	}
	cfg = "listen: 127.0.0.1:0\n" +
		strings.Replace(cfg, "CACHE", filepath.Join(filepath.Dir(r.file), "cache"), 1)
	if err := os.WriteFile(r.file, []byte(cfg), 0o600); err != nil {
		t.Fatal(err)
	}
}

// get sends a request. The body ends with the test at the latest.
func (r *running) get(t *testing.T, url string) (status int, body io.Reader) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := r.client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { resp.Body.Close() })
	return resp.StatusCode, resp.Body
}

// read sends a request and reads the response.
func (r *running) read(t *testing.T, url string) (status int, body string) {
	t.Helper()
	status, rest := r.get(t, url)
	b, err := io.ReadAll(rest)
	if err != nil {
		t.Fatal(err)
	}
	return status, string(b)
}

func (r *running) refuses(t *testing.T) {
	t.Helper()
	limit := time.After(patience)
	pace := time.NewTicker(time.Millisecond)
	defer pace.Stop()
	for {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, r.url+"/v2/", http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		req.Close = true
		resp, err := r.client.Do(req)
		if errors.Is(err, syscall.ECONNREFUSED) {
			return
		}
		if err == nil {
			resp.Body.Close()
		}
		select {
		case <-pace.C:
		case <-limit:
			t.Fatal("connections are still accepted")
		}
	}
}

// end waits for serve's result.
func (r *running) end(t *testing.T) error {
	t.Helper()
	select {
	case err := <-r.ended:
		return err
	case <-time.After(patience):
		text, _ := r.log.now()
		t.Fatalf("serve does not end:\n%s", text)
		return nil
	}
}
