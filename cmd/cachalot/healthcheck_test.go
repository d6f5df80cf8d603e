package main

import (
	"bytes"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
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
