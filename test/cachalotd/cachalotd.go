// Package cachalotd runs cachalot in its own process, for tests from outside: through its
// two listeners, its log, its folder and its signals.
package cachalotd

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/cachalot-registry/cachalot/upstream/upstreamtest"
)

// Process is a running cachalot. It is killed when its test ends.
type Process struct {
	URL    string // of the registry listener; "" if the process ended before it was ready
	Admin  string // of the admin listener
	Config string // the path of its configuration
	Log    Log
	Cmd    *exec.Cmd // cachalot, or its wrapper

	ended chan struct{} // closed when the process has ended
}

// Log is the path of a process' log.
type Log string

// String returns the log so far.
func (l Log) String() string {
	b, err := os.ReadFile(string(l))
	if err != nil {
		return err.Error()
	}
	return string(b)
}

// Addresses is configuration: both listeners on a free port of loopback.
const Addresses = "listen: 127.0.0.1:0\nadmin: {listen: 127.0.0.1:0}\n"

// built is cachalot, built once for all tests of a package.
//
//nolint:gochecknoglobals // one build for the whole run
var built struct {
	once sync.Once // guards the fields below
	dir  string    // removed by Main
	err  error
}

// Binary returns the path of the binary that Run runs, for its other commands.
func Binary(t *testing.T) string {
	t.Helper()
	built.once.Do(func() {
		if built.dir, built.err = os.MkdirTemp("", "cachalotd-"); built.err != nil { //nolint:usetesting // outlives the test
			return
		}
		// go run caches the linked binary for the next package; go build does not. No
		// version control: git rejects another user's checkout.
		build := exec.CommandContext(context.Background(), "go", "run", "-buildvcs=false", "-exec", "cp", "github.com/cachalot-registry/cachalot/cmd/cachalot", built.dir)
		if out, err := build.CombinedOutput(); err != nil {
			built.err = fmt.Errorf("build cachalot: %w: %s", err, out)
		}
	})
	if built.err != nil {
		t.Fatal(built.err)
	}
	return filepath.Join(built.dir, "cachalot")
}

// Main is for the TestMain of a package that runs cachalot. It runs the tests and removes
// the binary.
func Main(m *testing.M) {
	code := upstreamtest.Waiting{Tests: m}.Run()
	if built.dir != "" {
		_ = os.RemoveAll(built.dir)
	}
	os.Exit(code)
}

// Start is Run, and fails the test if the process ends before it is ready.
func Start(t *testing.T, config string, wrap ...string) *Process {
	t.Helper()
	p := Run(t, config, wrap...)
	if p.URL == "" {
		t.Fatalf("cachalot ended before it was ready: %s", p.Log)
	}
	return p
}

// Run runs `wrap... cachalot serve` and returns when the process is ready or has ended. It
// adds the addresses to the configuration.
func Run(t *testing.T, config string, wrap ...string) *Process {
	t.Helper()
	path, dir := Binary(t), t.TempDir()
	file := filepath.Join(dir, "config.yml")
	if err := os.WriteFile(file, []byte(Addresses+config), 0o600); err != nil {
		t.Fatal(err)
	}
	args := append(wrap, path, "serve", "--config", file)
	p := &Process{Cmd: exec.Command(args[0], args[1:]...), Config: file, Log: Log(filepath.Join(dir, "log")), ended: make(chan struct{})} //nolint:noctx // killed by the test
	out, err := os.Create(string(p.Log))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = out.Close() }()
	p.Cmd.Stdout, p.Cmd.Stderr = out, out
	p.Cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := p.Cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(p.ended)
		_ = p.Cmd.Wait() // the test checks the exit status
	}()
	t.Cleanup(p.Kill)
	p.awaitReady(t)
	return p
}

func (p *Process) awaitReady(t *testing.T) {
	t.Helper()
	said := regexp.MustCompile(`registry_mirror=(\S+) admin=(\S+)`)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		if m := said.FindStringSubmatch(p.Log.String()); m != nil {
			resp, err := http.Get(m[2] + "/readyz") //nolint:noctx // loopback
			if err == nil {
				_ = resp.Body.Close()
				if resp.StatusCode == http.StatusOK {
					p.URL, p.Admin = m[1], m[2]
					return
				}
			}
		}
		select {
		case <-tick.C:
		case <-p.ended:
			return
		case <-t.Context().Done():
			t.Fatalf("cachalot did not become ready: %s", p.Log)
		}
	}
}

// Ended is closed when the process has ended.
func (p *Process) Ended() <-chan struct{} { return p.ended }

// Kill sends SIGKILL, to what wraps the process too, and waits for the end.
func (p *Process) Kill() {
	select {
	case <-p.ended: // another process may have its number by now
		return
	default:
	}
	_ = syscall.Kill(-p.Cmd.Process.Pid, syscall.SIGKILL) // it may end by itself
	<-p.ended
}

// Interrupt sends SIGINT to the process and its wrapper, and waits for a normal end.
func (p *Process) Interrupt(t *testing.T) {
	t.Helper()
	if err := syscall.Kill(-p.Cmd.Process.Pid, syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	limit := time.NewTimer(time.Minute) // shutdown_timeout is half of that
	defer limit.Stop()
	select {
	case <-p.ended:
	case <-limit.C:
		t.Fatalf("cachalot does not end: %s", p.Log)
	}
	if !strings.Contains(p.Log.String(), "msg=stopped") {
		t.Errorf("no orderly end: %s", p.Log)
	}
}

// Get returns a page of the admin listener.
func (p *Process) Get(t *testing.T, path string) string {
	t.Helper()
	resp, err := Client().Get(p.Admin + path) //nolint:noctx // loopback
	if err != nil {
		t.Fatalf("%v: %s", err, p.Log)
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("%s: %s, %v", path, resp.Status, err)
	}
	return string(b)
}

// Metrics returns the samples of /metrics by name. Those with labels are added up.
func (p *Process) Metrics(t *testing.T) map[string]float64 {
	t.Helper()
	values := map[string]float64{}
	lines := bufio.NewScanner(strings.NewReader(p.Get(t, "/metrics")))
	sample := regexp.MustCompile(`^(\w+)(?:\{.*\})? (\S+)$`)
	for lines.Scan() {
		m := sample.FindStringSubmatch(lines.Text())
		if m == nil {
			continue
		}
		v, err := strconv.ParseFloat(m[2], 64)
		if err != nil {
			t.Errorf("%s: %v", lines.Text(), err)
		}
		values[m[1]] += v
	}
	return values
}

// Client returns an HTTP client that leaves no open connection.
func Client() *http.Client {
	return &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
}
