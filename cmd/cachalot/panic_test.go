package main

import (
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
	if _, body := r.read(t, r.admin+"/metrics"); !strings.Contains(body, "\ncachalot_panics_total 1\n") {
		t.Error("it is not counted")
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
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.URL+"/bug", http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	if resp, err := s.Client().Do(req); err == nil {
		resp.Body.Close()
		t.Errorf("answered %s", resp.Status)
	}
	ask(t, s.Client(), s.URL).Body.Close()
}

// ask is the answer to a GET.
func ask(t *testing.T, client *http.Client, url string) *http.Response {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	return resp
}
