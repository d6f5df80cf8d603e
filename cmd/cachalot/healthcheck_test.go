package main

import (
	"bytes"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/cachalot-registry/cachalot/cmd/cachalot/ops"
)

func TestHealthcheck(t *testing.T) {
	t.Parallel()
	answers := http.NewServeMux()
	answers.HandleFunc("/ready", func(http.ResponseWriter, *http.Request) {})
	answers.HandleFunc("/not", func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "shutting down", http.StatusServiceUnavailable)
	})
	var asked atomic.Int32
	answers.HandleFunc("/soon", func(w http.ResponseWriter, _ *http.Request) {
		if asked.Add(1) < 3 {
			http.Error(w, "starting", http.StatusServiceUnavailable)
		}
	})
	server := httptest.NewServer(answers)
	defer server.Close()
	for _, test := range []struct {
		url, wait      string
		code           int
		stdout, stderr string
	}{
		{server.URL + "/ready", "0s", exitOK, "ready\n", ""},
		{server.URL + "/not", "0s", exitFailed, "", "cachalot: not ready: 503 Service Unavailable: shutting down\n"},
		{server.URL + "/not", "300ms", exitFailed, "", "cachalot: not ready: 503 Service Unavailable: shutting down\n"},
		{server.URL + "/soon", "0s", exitFailed, "", "cachalot: not ready: 503 Service Unavailable: starting\n"},
		{server.URL + "/soon", "1m", exitOK, "ready\n", ""},
		{"http://127.0.0.1:port/", "1m", exitFailed, "", `cachalot: not healthy: parse "http://127.0.0.1:port/": invalid port ":port" after host` + "\n"},
	} {
		var stdout, stderr bytes.Buffer
		code := execute(t.Context(), []string{"healthcheck", "--url", test.url, "--wait", test.wait}, &stdout, &stderr)
		if code != test.code || stdout.String() != test.stdout || stderr.String() != test.stderr {
			t.Errorf("%s, --wait %s: %d, %q, %q", test.url, test.wait, code, stdout.String(), stderr.String())
		}
	}
}

// TestRunningAdmin: healthcheck asks where the configuration of the running cachalot says.
func TestRunningAdmin(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write := func(path, content string) string {
		path = filepath.Join(dir, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for name, tc := range map[string]struct {
		config  string
		cmdline []string // of process 7; process 40 is another cachalot
		want    string
	}{
		"no file":         {"", []string{"/cachalot", "serve"}, ops.DefaultAdmin},
		"another port":    {`admin: {listen: ":6001"}`, []string{"/cachalot", "serve", "--watch", "--config", "FILE"}, "http://127.0.0.1:6001"},
		"an equals sign":  {`admin: {listen: "0.0.0.0:6001"}`, []string{"/cachalot", "serve", "--config=FILE"}, "http://127.0.0.1:6001"},
		"IPv6":            {`admin: {listen: "[::]:6001"}`, []string{"/cachalot", "serve", "--config=FILE"}, "http://[::1]:6001"},
		"one address":     {`admin: {listen: "192.0.2.1:6001"}`, []string{"/cachalot", "serve", "--config=FILE"}, "http://192.0.2.1:6001"},
		"a mistake in it": {`admin: {listen: 6001x}`, []string{"/cachalot", "serve", "--config=FILE"}, ops.DefaultAdmin},
		"another program": {`admin: {listen: ":6001"}`, []string{"/bin/sh", "serve", "--config=FILE"}, "http://127.0.0.1:7001"},
	} {
		proc := filepath.Join("proc", strings.ReplaceAll(name, " ", "-"))
		file := write(filepath.Join(proc, "config.yml"), tc.config)
		line := strings.ReplaceAll(strings.Join(tc.cmdline, "\x00")+"\x00", "FILE", file)
		write(filepath.Join(proc, "7", "cmdline"), line)
		write(filepath.Join(proc, "self", "cmdline"), line)
		other := write(filepath.Join(proc, "other.yml"), `admin: {listen: ":7001"}`)
		write(filepath.Join(proc, "40", "cmdline"), "cachalot\x00serve\x00--config\x00"+other+"\x00")
		if got := runningAdmin(filepath.Join(dir, proc)); got != tc.want {
			t.Errorf("%s: %s, want %s", name, got, tc.want)
		}
	}
	if got := runningAdmin(filepath.Join(dir, "none")); got != ops.DefaultAdmin {
		t.Errorf("without a /proc: %s", got)
	}
}
