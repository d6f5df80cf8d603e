package main

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/cachalot-registry/cachalot/upstream/upstreamtest"
)

// terminal is a command that runs on a terminal.
type terminal struct {
	t    *testing.T
	cmd  *exec.Cmd
	keys io.WriteCloser
	out  *bufio.Reader
	seen strings.Builder
}

func onTerminal(t *testing.T, m mirror, command string) *terminal {
	t.Helper()
	script, err := exec.LookPath("script")
	if err != nil {
		t.Skip("no script (bsdutils) here")
	}
	term := &terminal{t: t, cmd: exec.CommandContext(t.Context(), script, "-qefc", command, os.DevNull)}
	term.cmd.Env = append(os.Environ(), "CACHALOT_ADMIN="+m.admin, "SHELL=/bin/sh")
	if term.keys, err = term.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := term.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	term.out = bufio.NewReader(out)
	if err := term.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return term
}

// until reads the terminal's output until it has this text.
func (term *terminal) until(text string) {
	term.t.Helper()
	for !strings.Contains(term.seen.String(), text) {
		b, err := term.out.ReadByte()
		if err != nil {
			term.t.Fatalf("%v; never %q in %q", err, text, term.seen.String())
		}
		term.seen.WriteByte(b)
	}
}

// interrupt sends Ctrl-C. It returns the output after it and the exit code.
func (term *terminal) interrupt() (after string, code int) {
	term.t.Helper()
	if _, err := io.WriteString(term.keys, "\x03"); err != nil {
		term.t.Fatal(err)
	}
	b, err := io.ReadAll(term.out)
	if err != nil {
		term.t.Fatal(err)
	}
	return string(b), exitCode(term.t, term.cmd.Wait())
}

func exitCode(t *testing.T, err error) int {
	t.Helper()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return exit.ExitCode()
	}
	if err != nil {
		t.Fatal(err)
	}
	return 0
}

// A warming shows a progress bar on a terminal only. At Ctrl-C it prints its progress, and
// running downloads continue.
func TestWarmInterrupted(t *testing.T) {
	t.Parallel()
	up := upstreamtest.New(t, upstreamtest.Options{})
	img := up.AddImage("library/app", "latest", upstreamtest.NewImage(1, 400_000))
	release, arrived := make(chan struct{}), make(chan struct{}, 10)
	up.Fault(upstreamtest.Match{Op: upstreamtest.GetBlob, Reference: img.Layers[0].Digest.String()}, upstreamtest.Arrived(arrived), upstreamtest.StallAfter(100_000, release))
	m := startMirror(t, up.URL)

	quiet := exec.CommandContext(t.Context(), "cachalot", "warm", "app", "--platform", "linux/amd64", "--admin", m.admin)
	var stdout, stderr bytes.Buffer
	quiet.Stdout, quiet.Stderr = &stdout, &stderr
	if err := quiet.Start(); err != nil {
		t.Fatal(err)
	}
	<-arrived
	term := onTerminal(t, m, "exec cachalot warm app --platform linux/amd64")
	term.until("0 of 1 image, ") // the output without a terminal has the same by then
	term.until("% |")
	after, code := term.interrupt()
	if code != exitFailed || !strings.Contains(after, "cachalot: interrupted with 0 of 1 image stored, in all ") || !strings.Contains(after, " of 391 KiB; downloads that have begun finish") {
		t.Errorf("exits with %d: %q", code, after)
	}
	if err := quiet.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	if code := exitCode(t, quiet.Wait()); code != exitFailed || stdout.Len() > 0 || strings.Contains(stderr.String(), "%") || strings.Count(stderr.String(), "\n") != 1 ||
		!strings.HasPrefix(stderr.String(), "cachalot: interrupted with 0 of 1 image stored") {
		t.Errorf("exits with %d: %q, %q", code, stdout.String(), stderr.String())
	}
	close(release)
	if n := up.Count(upstreamtest.GetBlob); n != 2 {
		t.Errorf("%d blobs were asked for, want a config and a layer once", n)
	}
}

// top restores the terminal when it ends.
func TestTopOnTerminal(t *testing.T) {
	t.Parallel()
	up := upstreamtest.New(t, upstreamtest.Options{})
	m := startMirror(t, up.URL)
	term := onTerminal(t, m, "stty cols 60 rows 12; exec cachalot top --interval 500ms")
	term.until("\x1b[?1049h\x1b[?25l\x1b[H")
	term.until("- requests")
	term.until("0/s requests") // the second frame has rates
	_, frames, _ := strings.Cut(term.seen.String(), "\x1b[H")
	frames = strings.NewReplacer("\x1b[H", "\n", "\x1b[K", "", "\x1b[J", "", "\r", "").Replace(frames)
	for line := range strings.Lines(frames) {
		line = strings.TrimSuffix(line, "\n")
		if len(line) > 60 {
			t.Errorf("longer than the terminal is wide: %q", line)
		}
	}
	after, code := term.interrupt()
	if code != exitOK || !strings.HasSuffix(after, "\x1b[?25h\x1b[?1049l") {
		t.Errorf("exits with %d: %q", code, after)
	}
}
