package main

import (
	"iter"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cachalot-registry/cachalot/upstream/upstreamtest"
)

// Each command in docs/admin-api.md works as written.
func TestAdminDocs(t *testing.T) {
	t.Parallel()
	curl, err := exec.LookPath("curl")
	if err != nil {
		t.Skip("the page's commands are curl's, which is not installed: ", err)
	}
	dir := t.TempDir()
	runPage(t, "../../docs/admin-api.md", func(cmd *exec.Cmd, _ string) {
		cmd.Dir = dir
		cmd.Env = []string{"PATH=" + filepath.Dir(curl), "CACHALOT_ADMIN_TOKEN=x"}
	})
}

// Each command in docs/command-line.md works as written.
func TestCommandLineDocs(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for name, text := range map[string]string{
		"compose.yaml": "services: {a: {image: alpine:3.22}}\n",
		"kubectl":      "#!/bin/sh\n[ \"$*\" = 'get pods --all-namespaces --output json' ] && echo '{\"kind\": \"Pod\", \"spec\": {\"containers\": [{\"image\": \"alpine:3.22\"}]}}'\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	runPage(t, "../../docs/command-line.md", func(cmd *exec.Cmd, admin string) {
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "PATH="+dir+":"+os.Getenv("PATH"), "CACHALOT_ADMIN="+admin)
	})
}

// runPage runs each command of a page against a mirror with alpine:3.22. prepare gets the
// URL of its admin listener.
func runPage(t *testing.T, file string, prepare func(cmd *exec.Cmd, admin string)) {
	t.Helper()
	page, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	up := upstreamtest.New(t, upstreamtest.Options{})
	up.AddImage("library/alpine", "3.22", upstreamtest.NewImage(1, 1000))
	m := startMirror(t, up.URL)
	resp, err := http.Get(m.url + "/v2/library/alpine/manifests/3.22") //nolint:noctx // loopback
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		t.Fatal(resp.Status)
	}
	commands := 0
	for line := range shellLines(string(page)) {
		commands++
		cmd := exec.CommandContext(t.Context(), "sh", "-c", strings.ReplaceAll(line, "http://127.0.0.1:5001", m.admin))
		prepare(cmd, m.admin)
		if out, err := cmd.CombinedOutput(); err != nil || strings.Contains(string(out), `"code"`) {
			t.Errorf("%s%v\n%s", line, err, out)
		}
	}
	if commands < 15 {
		t.Errorf("%d commands, want more", commands)
	}
}

// shellLines are the lines of a page's sh blocks.
func shellLines(page string) iter.Seq[string] {
	return func(yield func(string) bool) {
		code := false
		for line := range strings.Lines(page) {
			if strings.HasPrefix(line, "```") {
				code = strings.HasPrefix(line, "```sh")
			} else if code && !yield(line) {
				return
			}
		}
	}
}
