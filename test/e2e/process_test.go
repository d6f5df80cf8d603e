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
	patience = time.Minute      // for what takes a moment on a free machine
	grace    = 20 * time.Second // for a process to end by itself
	tailSize = 12 << 10         // bytes of a log shown when a test fails
)

// installed is the path of what the script run has put in place.
func installed(t *testing.T, name string) string {
	t.Helper()
	path := filepath.Join(os.Getenv("CACHALOT_E2E_DIR"), name)
	if _, err := os.Stat(path); err != nil || !filepath.IsAbs(path) {
		t.Fatalf("%q is not installed: start these tests with test/e2e/run", path)
	}
	return path
}

// process runs beside the test and ends with it.
type process struct {
	name string
	log  string // file of its output
	cmd  *exec.Cmd
	done chan struct{} // closed when it has ended
}

// start starts a process. Its output is shown if the test fails.
func start(t *testing.T, name string, env []string, argv ...string) *process {
	t.Helper()
	p := &process{name: name, log: filepath.Join(t.TempDir(), "log"), done: make(chan struct{})}
	log, err := os.Create(p.log)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	// Not the test's context, which ends before its cleanups: these end it in order.
	p.cmd = exec.CommandContext(context.WithoutCancel(t.Context()), argv[0], argv[1:]...)
	p.cmd.Env = append(os.Environ(), env...)
	p.cmd.Stdout, p.cmd.Stderr = log, log
	// If this process is killed, its children must not stay.
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	if err := p.cmd.Start(); err != nil {
		t.Fatalf("start %s: %v", name, err)
	}
	go func() {
		defer close(p.done)
		_ = p.cmd.Wait() // how it ended is in its log
	}()
	t.Cleanup(func() {
		p.stop(t)
		if t.Failed() {
			t.Logf("the end of the log of %s:\n%s", name, tail(p.said()))
		}
	})
	return p
}

// stop asks the process to end, and kills its group if it does not.
func (p *process) stop(t *testing.T) {
	t.Helper()
	p.signal(syscall.SIGTERM)
	select {
	case <-p.done:
	case <-time.After(grace):
		t.Errorf("%s did not end within %v of SIGTERM", p.name, grace)
		_ = syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL) // it may have ended just now
		<-p.done
	}
}

// kill ends it as a crash would.
func (p *process) kill() {
	p.signal(syscall.SIGKILL)
	<-p.done
}

func (p *process) signal(s syscall.Signal) {
	_ = p.cmd.Process.Signal(s) // it may have ended already
}

// until waits for ready to return nil, while the process lives. What takes long is
// asked less often: commands such as docker's would keep a processor busy.
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

// said is what the process has written so far.
func (p *process) said() string {
	b, err := os.ReadFile(p.log)
	if err != nil {
		return err.Error()
	}
	return string(b)
}

// tail is the end of a long text.
func tail(s string) string {
	if len(s) <= tailSize {
		return s
	}
	_, s, _ = strings.Cut(s[len(s)-tailSize:], "\n")
	return s
}

// try runs a command to its end and returns what it said on stdout.
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

// must is try where failure ends the test.
func must(t *testing.T, env []string, argv ...string) string {
	t.Helper()
	out, err := try(t, env, argv...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// leave waits for the processes that still work below dir, such as podman's
// clean-up of a container that has ended, and unmounts what they leave there.
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
				_ = syscall.Kill(pid, syscall.SIGKILL) // it may have ended just now
			}
		}
	}
	b, err := os.ReadFile("/proc/self/mounts")
	check(t, err)
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	for _, line := range slices.Backward(lines) { // the newest first
		if f := strings.Fields(line); strings.HasPrefix(f[1], dir+"/") {
			check(t, syscall.Unmount(f[1], syscall.MNT_DETACH))
		}
	}
}

// workingIn returns the processes whose command lines name dir.
func workingIn(t *testing.T, dir string) map[int]string {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	check(t, err)
	found := map[int]string{}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil || !strings.Contains(string(b), dir+"/") {
			continue // another's, or it has just ended
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(f)))
		check(t, err)
		found[pid] = strings.ReplaceAll(string(b), "\x00", " ")
	}
	return found
}
