package server

import (
	"net/http"
	"strings"
	"testing"

	"github.com/cachalot-registry/cachalot/task"
)

// TestPanics: a panic is counted, and logged with its stack.
func TestPanics(t *testing.T) { //nolint:paralleltest // a process has one reporter, the last mirror's to start
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

// TestServer_Panics: a panic in a handler ends only its own connection.
func TestServer_Panics(t *testing.T) {
	t.Parallel()
	l := startServer(t, 8, false, func(_ http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/bug" {
			panic("a bug")
		}
	})
	if n, err := l.ask(t, "/bug").Read(make([]byte, 1)); n != 0 || err == nil {
		t.Error("answered")
	}
	answered(t, l.ask(t, "/"))
}
