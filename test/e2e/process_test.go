//go:build e2e

package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

const (
	patience = time.Minute      // for an action that is quick on an idle machine
	grace    = 20 * time.Second // for a process to end after a signal
	tailSize = 12 << 10         // bytes of a log that a failed test shows
)

// installed is the path of a program that the script run installs.
func installed(t *testing.T, name string) string {
	t.Helper()
	path := filepath.Join(os.Getenv("CACHALOT_E2E_DIR"), name)
	if _, err := os.Stat(path); err != nil || !filepath.IsAbs(path) {
		t.Fatalf("%q is not installed: start these tests with test/e2e/run", path)
	}
	return path
}

// process is a process that ends with the test.
type process struct {
	name string
	log  string // file of its output
	cmd  *exec.Cmd
	done chan struct{} // closed when it has ended
}

// start starts a process. A failed test shows its output.
func start(t *testing.T, name string, env []string, argv ...string) *process {
	t.Helper()
	p := &process{name: name, log: filepath.Join(t.TempDir(), "log"), done: make(chan struct{})}
	log, err := os.Create(p.log)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	// Not the test's context: it ends before the cleanups, which stop the processes in order.
	p.cmd = exec.CommandContext(context.WithoutCancel(t.Context()), argv[0], argv[1:]...)
	p.cmd.Env = append(os.Environ(), env...)
	p.cmd.Stdout, p.cmd.Stderr = log, log
	// If this process is killed, its children end too.
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	if err := p.cmd.Start(); err != nil {
		t.Fatalf("start %s: %v", name, err)
	}
	go func() {
		defer close(p.done)
		_ = p.cmd.Wait() // the log has the reason
	}()
	t.Cleanup(func() {
		p.stop(t)
		if t.Failed() {
			t.Logf("the end of the log of %s:\n%s", name, tail(p.said()))
		}
	})
	return p
}

// stop sends SIGTERM, and kills the process group if that does not end it.
func (p *process) stop(t *testing.T) {
	t.Helper()
	p.signal(syscall.SIGTERM)
	select {
	case <-p.done:
	case <-time.After(grace):
		t.Errorf("%s did not end within %v of SIGTERM", p.name, grace)
		_ = syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL) // it may have ended
		<-p.done
	}
}

// kill kills the process, as a crash does.
func (p *process) kill() {
	p.signal(syscall.SIGKILL)
	<-p.done
}

func (p *process) signal(s syscall.Signal) {
	_ = p.cmd.Process.Signal(s) // it may have ended
}

// until waits for ready to return nil, while the process lives. A slow ready is called less
// often, to save CPU time.
func (p *process) until(t *testing.T, what string, ready func() error) {
	t.Helper()
	limit := time.After(patience)
	for {
		asked := time.Now()
		err := ready()
		if err == nil {
			return
		}
		select {
		case <-time.After(max(20*time.Millisecond, 4*time.Since(asked))):
		case <-p.done:
			t.Fatalf("%s ended before it was %s: %v", p.name, what, err)
		case <-limit:
			t.Fatalf("%s is not %s after %v: %v", p.name, what, patience, err)
		}
	}
}

// said is the process' output so far.
func (p *process) said() string {
	b, err := os.ReadFile(p.log)
	if err != nil {
		return err.Error()
	}
	return string(b)
}

// tail returns the end of a long text.
func tail(s string) string {
	if len(s) <= tailSize {
		return s
	}
	_, s, _ = strings.Cut(s[len(s)-tailSize:], "\n")
	return s
}

// try runs a command to its end and returns its stdout.
func try(t *testing.T, env []string, argv ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), 5*patience) // cleanups run commands too
	defer cancel()
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Env = append(os.Environ(), env...)
	cmd.WaitDelay = grace
	out, err := cmd.Output()
	if err != nil {
		if exit, ok := errors.AsType[*exec.ExitError](err); ok {
			err = fmt.Errorf("%w: %s%s", err, out, exit.Stderr)
		}
		return "", fmt.Errorf("%s: %w", strings.Join(argv, " "), err)
	}
	return strings.TrimSpace(string(out)), nil
}

// must is try, and ends the test on failure.
func must(t *testing.T, env []string, argv ...string) string {
	t.Helper()
	out, err := try(t, env, argv...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// leave waits for processes that still use dir, such as podman's cleanup of a container,
// and unmounts what they leave.
func leave(t *testing.T, dir string) {
	t.Helper()
	limit := time.After(grace)
	pace := time.NewTicker(20 * time.Millisecond)
	defer pace.Stop()
	for late := false; ; {
		left := workingIn(t, dir)
		if len(left) == 0 {
			break
		}
		select {
		case <-pace.C:
		case <-limit:
			late = true
			t.Errorf("still running after %v: %v", grace, left)
		}
		for pid := range left {
			if late {
				_ = syscall.Kill(pid, syscall.SIGKILL) // it may have ended
			}
		}
	}
	b, err := os.ReadFile("/proc/self/mounts")
	check(t, err)
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	for _, line := range slices.Backward(lines) { // newest first
		if f := strings.Fields(line); strings.HasPrefix(f[1], dir+"/") {
			check(t, syscall.Unmount(f[1], syscall.MNT_DETACH))
		}
	}
}

// workingIn returns the processes with dir in their command lines.
func workingIn(t *testing.T, dir string) map[int]string {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	check(t, err)
	found := map[int]string{}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil || !strings.Contains(string(b), dir+"/") {
			continue // another user's process, or it has ended
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(f)))
		check(t, err)
		found[pid] = strings.ReplaceAll(string(b), "\x00", " ")
	}
	return found
}
