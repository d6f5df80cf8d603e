package process

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
)

// binary is cachalot, built once for all tests.
//
//nolint:gochecknoglobals // one build for the whole run
var binary = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "cachalot-process-test-")
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "cachalot")
	out, err := exec.CommandContext(context.Background(), "go", "build", "-o", path, "../../cmd/cachalot").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("build cachalot: %w: %s", err, out)
	}
	return path, nil
})

func TestMain(m *testing.M) {
	code := m.Run()
	if path, err := binary(); err == nil {
		_ = os.RemoveAll(filepath.Dir(path))
	}
	os.Exit(code)
}

// server is a running cachalot.
type server struct {
	cmd *exec.Cmd
	url string
	log *bytes.Buffer
}

// start runs `wrap... cachalot serve` over the folder and waits until it is ready.
func start(t *testing.T, folder, upstream string, wrap ...string) *server {
	t.Helper()
	path, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	listen, admin := freeAddress(t), freeAddress(t)
	file := filepath.Join(t.TempDir(), "config.yml")
	config := fmt.Sprintf(`
listen: %s
admin: {listen: %s}
storage: {path: %s, min_free: 0}
upstreams: {docker.io: {url: %s}}
`, listen, admin, folder, upstream)
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	args := append(wrap, path, "serve", "--config", file)
	s := &server{cmd: exec.Command(args[0], args[1:]...), url: "http://" + listen, log: new(bytes.Buffer)} //nolint:noctx // killed by the test
	s.cmd.Stdout, s.cmd.Stderr = s.log, s.log
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.kill() })
	for tick := time.NewTicker(5 * time.Millisecond); ; <-tick.C {
		resp, err := http.Get("http://" + admin + "/readyz") //nolint:noctx // loopback
		if err == nil {
			_ = resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return s
			}
		}
		if t.Context().Err() != nil || s.cmd.Process.Signal(syscall.Signal(0)) != nil {
			t.Fatalf("cachalot did not become ready: %s", s.log)
		}
	}
}

// kill is kill -9, of what wraps it too.
func (s *server) kill() {
	_ = syscall.Kill(-s.cmd.Process.Pid, syscall.SIGKILL) // it may have ended
	_ = s.cmd.Wait()
}

// interrupt ends the process in good order. What wraps it passes the signal on.
func (s *server) interrupt(t *testing.T) {
	t.Helper()
	if err := syscall.Kill(-s.cmd.Process.Pid, syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	_ = s.cmd.Wait() // strace ends as it was signalled
	if !strings.Contains(s.log.String(), "msg=stopped") {
		t.Errorf("no orderly end: %s", s.log)
	}
}

func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // closed at once
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	return l.Addr().String()
}

// fetch gets a blob and checks it. Its error says nothing of a mirror that was
// killed meanwhile.
func (s *server) fetch(client *http.Client, d digest.Digest) error {
	resp, err := client.Get(s.url + "/v2/library/app/blobs/" + d.String()) //nolint:noctx // ends with the server
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("status %d", resp.StatusCode)
	}
	verifier := d.Verifier()
	if _, err := io.Copy(verifier, resp.Body); err != nil {
		return err
	}
	if !verifier.Verified() {
		return errWrongBytes
	}
	return nil
}

var errWrongBytes = errors.New("a complete answer with wrong bytes")
