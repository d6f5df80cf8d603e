package server

import (
	"bufio"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/cachalot-registry/cachalot/upstream/upstreamtest"
)

// post sends JSON to the admin API.
func (r *running) post(t *testing.T, path, token, body string) (status int, answer io.Reader) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, r.admin+"/api/v1/"+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	resp, err := r.client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { resp.Body.Close() })
	return resp.StatusCode, resp.Body
}

// The API reports the configuration in effect, also after a reload.
func TestAdminAPIFollowsReload(t *testing.T) {
	t.Parallel()
	up := upstreamtest.New(t, upstreamtest.Options{})
	up.AddImage("library/app", "latest", upstreamtest.NewImage(1, 1000))
	r := start(t, upstreams(up.URL))
	if _, text := r.read(t, r.admin+"/api/v1/upstreams"); !strings.Contains(text, `"docker.io"`) || strings.Contains(text, "quay.io") {
		t.Error(text)
	}
	r.configure(t, upstreams(up.URL)+"  quay.io:\n    url: "+up.URL+"\nrules:\n- match: [\"quay.io/**\"]\n  pin: true\n")
	r.signals <- syscall.SIGHUP
	r.log.wait(t, `msg="configuration reloaded"`)
	if _, text := r.read(t, r.admin+"/api/v1/upstreams"); !strings.Contains(text, `"quay.io"`) {
		t.Error(text)
	}
	if _, text := r.read(t, r.admin+"/api/v1/pins"); !strings.Contains(text, `"match":"quay.io/**","source":"rules[0]"`) {
		t.Error(text)
	}
	if status, _ := r.post(t, "pins", "", `{"match": "app"}`); status != http.StatusCreated {
		t.Error(status)
	}
	r.log.wait(t, `msg=admin audit.action="post pins" audit.target=docker.io/library/app audit.remote=127.0.0.1:\d+ audit.token=none audit.outcome=done`)
}

// A reload changes the mirror's hosts, but not the admin listener's.
func TestHosts(t *testing.T) {
	t.Parallel()
	up := upstreamtest.New(t, upstreamtest.Options{})
	ask := func(r *running, url, host string) int {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		req.Host = host
		resp, err := r.client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		return resp.StatusCode
	}
	r := start(t, "admin: {hosts: [admin.example]}\nhosts: [mirror.example]\n"+upstreams(up.URL))
	for host, status := range map[string]int{"mirror.example": http.StatusOK, "other.example": http.StatusMisdirectedRequest, "127.0.0.1": http.StatusOK} {
		if got := ask(r, r.url+"/v2/", host); got != status {
			t.Errorf("%s: %d, want %d", host, got, status)
		}
	}
	admin := map[string]int{"admin.example": http.StatusOK, "mirror.example": http.StatusMisdirectedRequest, "other.example": http.StatusMisdirectedRequest}
	for host, status := range admin {
		if got := ask(r, r.admin+"/metrics", host); got != status {
			t.Errorf("%s: %d, want %d", host, got, status)
		}
	}
	r.configure(t, "admin: {hosts: [other.example]}\nhosts: [other.example]\n"+upstreams(up.URL))
	r.signals <- syscall.SIGHUP
	r.log.wait(t, `msg="changed keys need a restart" keys=admin.hosts`)
	r.log.wait(t, `msg="configuration reloaded"`)
	if got := ask(r, r.url+"/v2/", "mirror.example"); got != http.StatusMisdirectedRequest {
		t.Errorf("after a reload: %d", got)
	}
	if got := ask(r, r.url+"/v2/", "other.example"); got != http.StatusOK {
		t.Errorf("after a reload: %d", got)
	}
	if got := ask(r, r.admin+"/metrics", "other.example"); got != http.StatusMisdirectedRequest {
		t.Errorf("admin, after a reload: %d", got)
	}
}

// A token file may change while the mirror runs.
func TestAdminTokenFile(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "token")
	write := func(token string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(token), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("canary-first-0123456789\n")
	up := upstreamtest.New(t, upstreamtest.Options{})
	r := start(t, "admin: {token_file: "+file+"}\n"+upstreams(up.URL))
	for _, step := range []struct {
		token, shown string
		status       int
	}{
		{"canary-first-0123456789\n", "", http.StatusUnauthorized},
		{"canary-first-0123456789\n", "canary-first-0123456789", http.StatusCreated},
		{"canary-second-0123456789", "canary-first-0123456789", http.StatusUnauthorized},
		{"canary-second-0123456789", "canary-second-0123456789", http.StatusOK},
		{"canary", "canary", http.StatusInternalServerError}, // too short for a token
		{"", "", http.StatusInternalServerError},
	} {
		write(step.token)
		if status, answer := r.post(t, "pins", step.shown, `{"match": "app"}`); status != step.status {
			b, _ := io.ReadAll(answer)
			t.Errorf("%+v: %d %s", step, status, b)
		}
	}
	if status, text := r.read(t, r.admin+"/api/v1/pins"); status != http.StatusOK || !strings.Contains(text, "docker.io/library/app") {
		t.Error(status, text)
	}
	r.log.wait(t, `audit.token=admin.token_file`)
	if text, _ := r.log.now(); strings.Contains(text, "canary") {
		t.Error("the token is in the log")
	}
}

// The process does not wait for a warming when it ends.
func TestWarmEndsWithTheProcess(t *testing.T) {
	t.Parallel()
	up := upstreamtest.New(t, upstreamtest.Options{})
	up.AddImage("library/app", "latest", upstreamtest.NewImage(1, 1<<20))
	release := make(chan struct{})
	defer close(release)
	arrived := make(chan struct{}, 10)
	up.Fault(upstreamtest.Match{Op: upstreamtest.GetBlob}, upstreamtest.Arrived(arrived), upstreamtest.StallAfter(1000, release))
	r := start(t, upstreams(up.URL))
	_, answer := r.post(t, "warm", "", `{"images": ["app"], "platforms": ["all"]}`)
	<-arrived
	r.signals <- syscall.SIGTERM
	if err := r.end(t); err != nil {
		t.Error(err)
	}
	var last string
	for lines := bufio.NewScanner(answer); lines.Scan(); {
		last = lines.Text()
	}
	if !strings.HasPrefix(last, `{"event":"end"`) || !strings.Contains(last, `"error":"`) {
		t.Errorf("the last line is %s", last)
	}
}
