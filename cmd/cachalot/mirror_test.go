package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"syscall"
	"testing"
)

// mirror is a cachalot in its own process.
type mirror struct{ url, admin string }

// startMirror starts a mirror of Docker Hub, which is at this URL. It ends with the test.
func startMirror(t *testing.T, hub string) mirror {
	t.Helper()
	dir := t.TempDir()
	file := filepath.Join(dir, "config.yml")
	config := fmt.Sprintf("listen: 127.0.0.1:0\nadmin: {listen: 127.0.0.1:0}\nstorage: {path: %q, min_free: 0}\nupstreams: {docker.io: {url: %q}}\n", filepath.Join(dir, "cache"), hub)
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "cachalot", "serve", "--config", file)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	log, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	said := regexp.MustCompile(`registry_mirror=(\S+) admin=(\S+)`)
	lines := bufio.NewScanner(log)
	var begins []string
	for begins == nil && lines.Scan() {
		begins = said.FindStringSubmatch(lines.Text())
	}
	ended := make(chan error, 1)
	go func() {
		_, _ = io.Copy(io.Discard, log)
		ended <- cmd.Wait()
	}()
	t.Cleanup(func() { // its context has ended
		if err := <-ended; err != nil && !errors.Is(err, t.Context().Err()) {
			t.Error("cachalot serve: ", err)
		}
	})
	if begins == nil {
		t.Fatal("cachalot serve has ended")
	}
	return mirror{begins[1], begins[2]}
}
