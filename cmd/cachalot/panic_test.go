package main

import (
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/cachalot-registry/cachalot/task"
)

// TestPanics: a panic is counted, and logged with its stack. It is not for beside other
// mirrors of this process, who would be told of it too.
func TestPanics(t *testing.T) { //nolint:paralleltest // see above
	r := start(t, "log: {format: json}\n")
	task.Guard("a test", func() { panic("a bug") })()
	line := r.log.wait(t, `"msg":"panic;[^\n]*`)[0]
	for _, part := range []string{`"work":"a test"`, `"panic":"a bug"`, `TestPanics`} {
		if !strings.Contains(line, part) {
			t.Errorf("%s is not in %s", part, line)
		}
	}
	resp, err := r.client.Get("http://" + strings.TrimPrefix(r.admin, "http://") + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if b, err := io.ReadAll(resp.Body); err != nil || !strings.Contains(string(b), "\ncachalot_panics_total 1\n") {
		t.Errorf("not counted: %v", err)
	}
}

// TestServer_Panics: what panics in a handler ends its connection, and no other.
func TestServer_Panics(t *testing.T) {
	t.Parallel()
	s := httptest.NewUnstartedServer(nil)
	l := newBoundedListener(s.Listener, 8, func() {})
	s.Listener = l
	s.Config = newServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/bug" {
			panic("a bug")
		}
	}), l, slog.New(slog.DiscardHandler))
	s.Start()
	t.Cleanup(s.Close)
	resp, err := s.Client().Get(s.URL + "/bug")
	if err == nil {
		resp.Body.Close()
		t.Errorf("answered %s", resp.Status)
	}
	if resp, err = s.Client().Get(s.URL); err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
}
