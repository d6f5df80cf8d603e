package main

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The CPU clock of a process is between two readings of getrusage(2). The test is not parallel.
func TestCPUTime(t *testing.T) {
	usage := func() time.Duration {
		var u unix.Rusage
		if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
			t.Fatal(err)
		}
		return time.Duration(u.Utime.Nano() + u.Stime.Nano())
	}
	earlier, err := endedChildren(os.Getpid()) // of other tests
	if err != nil {
		t.Fatal(err)
	}
	before, err := cpuTime(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	for begin := usage(); usage() < begin+20*time.Millisecond; {
		continue // busy
	}
	between := usage() + earlier
	after, err := cpuTime(os.Getpid())
	const rounding = 2 * time.Microsecond
	if err != nil || before > between-20*time.Millisecond+rounding || after < between-rounding {
		t.Errorf("%v, then %v by getrusage, then %v, %v", before, between, after, err)
	}

	cmd := exec.CommandContext(t.Context(), "sh", "-c", "i=0; while [ $i -lt 50000 ]; do i=$((i+1)); done")
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
	const ticks = 2 * 10 * time.Millisecond
	took := cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
	with, err := cpuTime(os.Getpid())
	if err != nil || took <= ticks || with < after+took-ticks {
		t.Errorf("%v, then a child took %v, then %v, %v", after, took, with, err)
	}
}

// A process' children are counted and pinned with it.
func TestFamily(t *testing.T) {
	t.Parallel()
	cmd := exec.CommandContext(t.Context(), "sh", "-c", `exec 3<&0; sh -c 'echo $$; read x; echo $x' <&3 & wait`)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	lines.Scan()
	var child int
	if _, err := fmt.Sscan(lines.Text(), &child); err != nil {
		t.Fatal(err)
	}
	if got := family(cmd.Process.Pid); !slices.Equal(got, []int{cmd.Process.Pid, child}) {
		t.Errorf("got %v, want %d and %d", got, cmd.Process.Pid, child)
	}
	alone, err := peakMemory(child)
	if err != nil {
		t.Fatal(err)
	}
	if both, err := peakMemory(cmd.Process.Pid); err != nil || alone == 0 || both <= alone {
		t.Errorf("peak memory %d, of which %d is the child's, %v", both, alone, err)
	}
	c, err := splitCores()
	if err != nil {
		t.Fatal(err)
	}
	if len(c.server) > 0 {
		if err := pin(cmd.Process.Pid, c.server); err != nil {
			t.Fatal(err)
		}
		if got, err := allowed(child); err != nil || !slices.Equal(got, c.server) {
			t.Errorf("the child may use %v, %v", got, err)
		}
	}
	_, _ = in.Write([]byte("end\n"))
	if lines.Scan(); lines.Text() != "end" {
		t.Errorf("got %q", lines.Text())
	}
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	if _, err := cpuTime(child); err == nil || !strings.Contains(err.Error(), "read the processor time") {
		t.Errorf("of a process that has ended: %v", err)
	}
}

// A child that is started on some processors has only those. Its parent keeps all.
func TestPinned(t *testing.T) {
	t.Parallel()
	c, err := splitCores()
	if err != nil {
		t.Fatal(err)
	}
	if len(c.server) == 0 {
		t.Skip("there is one processor only")
	}
	cmd := exec.CommandContext(t.Context(), "cat")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := pinned(c.server, cmd.Start); err != nil {
		t.Fatal(err)
	}
	if got, err := allowed(cmd.Process.Pid); err != nil || !slices.Equal(got, c.server) {
		t.Errorf("it may use %v, %v", got, err)
	}
	if again, err := splitCores(); err != nil || !slices.Equal(again.client, c.client) {
		t.Errorf("then %v, before %v, %v", again, c, err)
	}
	_ = in.Close()
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
}
