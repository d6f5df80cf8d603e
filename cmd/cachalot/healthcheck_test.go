package main

import (
	"bytes"
	"net/http"
	"net/http/httptest"
	"testing"
)

func TestHealthcheck(t *testing.T) {
	t.Parallel()
	answers := http.NewServeMux()
	answers.HandleFunc("/ready", func(http.ResponseWriter, *http.Request) {})
	answers.HandleFunc("/not", func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "shutting down", http.StatusServiceUnavailable)
	})
	server := httptest.NewServer(answers)
	defer server.Close()
	for _, test := range []struct {
		url            string
		code           int
		stdout, stderr string
	}{
		{server.URL + "/ready", exitOK, "ready\n", ""},
		{server.URL + "/not", exitFailed, "", "cachalot: not ready: 503 Service Unavailable: shutting down\n"},
		{"http://127.0.0.1:port/", exitFailed, "", `cachalot: not healthy: parse "http://127.0.0.1:port/": invalid port ":port" after host` + "\n"},
	} {
		var stdout, stderr bytes.Buffer
		code := execute(t.Context(), []string{"healthcheck", "--url", test.url}, &stdout, &stderr)
		if code != test.code || stdout.String() != test.stdout || stderr.String() != test.stderr {
			t.Errorf("%s: %d, %q, %q", test.url, code, stdout.String(), stderr.String())
		}
	}
}
