package process

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
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
	cmd    *exec.Cmd
	url    string
	admin  string // the admin listener's URL
	config string // its file
	log    logFile
	ended  chan struct{} // closed once the process has been waited for
}

// logFile is the path of what a process says.
type logFile string

func (f logFile) String() string {
	b, err := os.ReadFile(string(f))
	if err != nil {
		return err.Error()
	}
	return string(b)
}

// start runs `wrap... cachalot serve` over the folder and waits until it is ready.
func start(t *testing.T, folder, upstream string, wrap ...string) *server {
	t.Helper()
	return ready(t, run(t, folder, upstream, wrap...))
}

func ready(t *testing.T, s *server) *server {
	t.Helper()
	if s.url == "" {
		t.Fatalf("cachalot ended before it was ready: %s", s.log)
	}
	return s
}

// run is start, but that the process may end instead; it has no url then.
func run(t *testing.T, folder, upstream string, wrap ...string) *server {
	t.Helper()
	return runConfig(t, basicConfig(folder, upstream), wrap...)
}

// basicConfig is what run writes, with more keys of storage.
func basicConfig(folder, upstream string, storage ...string) string {
	keys := strings.Join(append([]string{"path: " + folder, "min_free: 0"}, storage...), ", ")
	return fmt.Sprintf("storage: {%s}\nupstreams: {docker.io: {url: %s}}\n", keys, upstream)
}

// addresses are any that are free.
const addresses = "listen: 127.0.0.1:0\nadmin: {listen: 127.0.0.1:0}\n"

// runConfig is run with a configuration, which needs no addresses.
func runConfig(t *testing.T, config string, wrap ...string) *server {
	t.Helper()
	path, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	file := filepath.Join(dir, "config.yml")
	if err := os.WriteFile(file, []byte(addresses+config), 0o600); err != nil {
		t.Fatal(err)
	}
	args := append(wrap, path, "serve", "--config", file)
	s := &server{cmd: exec.Command(args[0], args[1:]...), config: file, log: logFile(filepath.Join(dir, "log")), ended: make(chan struct{})} //nolint:noctx // killed by the test
	out, err := os.Create(string(s.log))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = out.Close() }()
	s.cmd.Stdout, s.cmd.Stderr = out, out
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(s.ended)
		_ = s.cmd.Wait() // how it ends is the test's business
	}()
	t.Cleanup(s.kill)
	said := regexp.MustCompile(`registry_mirror=(\S+) admin=(\S+)`)
	for tick := time.NewTicker(5 * time.Millisecond); ; {
		if m := said.FindStringSubmatch(s.log.String()); m != nil {
			resp, err := http.Get(m[2] + "/readyz") //nolint:noctx // loopback
			if err == nil {
				_ = resp.Body.Close()
				if resp.StatusCode == http.StatusOK {
					s.url, s.admin = m[1], m[2]
					return s
				}
			}
		}
		select {
		case <-tick.C:
		case <-s.ended:
			return s
		case <-t.Context().Done():
			t.Fatalf("cachalot did not become ready: %s", s.log)
		}
	}
}

// kill is kill -9, of what wraps it too.
func (s *server) kill() {
	select {
	case <-s.ended: // another process may have its number by now
		return
	default:
	}
	_ = syscall.Kill(-s.cmd.Process.Pid, syscall.SIGKILL) // it may end by itself
	<-s.ended
}

// interrupt ends the process in good order. What wraps it passes the signal on.
func (s *server) interrupt(t *testing.T) {
	t.Helper()
	if err := syscall.Kill(-s.cmd.Process.Pid, syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	limit := time.NewTimer(time.Minute) // shutdown_timeout is half of that
	defer limit.Stop()
	select {
	case <-s.ended:
	case <-limit.C:
		t.Fatalf("it does not end: %s", s.log)
	}
	if !strings.Contains(s.log.String(), "msg=stopped") {
		t.Errorf("no orderly end: %s", s.log)
	}
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
