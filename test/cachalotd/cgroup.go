package cachalotd

import (
	"bytes"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// Cgroup is a group of processes with a memory limit.
type Cgroup struct {
	dir string
	v1  bool
}

// NewCgroup makes a group with a limit in bytes. It skips the test if that is impossible.
func NewCgroup(t *testing.T, limit int) Cgroup {
	t.Helper()
	g := Cgroup{dir: "/sys/fs/cgroup"}
	limits := map[string]string{"memory.max": strconv.Itoa(limit), "memory.swap.max": "0"}
	if controllers, err := os.ReadFile(filepath.Join(g.dir, "cgroup.controllers")); err != nil || !bytes.Contains(controllers, []byte("memory")) {
		g = Cgroup{dir: "/sys/fs/cgroup/memory", v1: true}
		limits = map[string]string{"memory.limit_in_bytes": strconv.Itoa(limit)}
	}
	dir, err := os.MkdirTemp(g.dir, "cachalot-test-") //nolint:usetesting // of the cgroup file system
	if err != nil {
		t.Skip("a limit on memory needs a cgroup of its own, and so root: ", err)
	}
	g.dir = dir
	t.Cleanup(func() {
		if err := os.Remove(g.dir); err != nil { // its processes have ended
			t.Error(err)
		}
	})
	for name, value := range limits {
		if err := os.WriteFile(filepath.Join(g.dir, name), []byte(value), 0o600); err != nil && name != "memory.swap.max" { // there may be no swap
			t.Skip("a limit on memory needs the memory controller: ", err)
		}
	}
	return g
}

// Wrap returns the command prefix that runs a command in the group: see Start.
func (g Cgroup) Wrap() []string {
	return []string{"sh", "-c", `echo $$ >"$0" && exec "$@"`, filepath.Join(g.dir, "cgroup.procs")}
}

// Read returns the peak memory in bytes, and the number of processes killed for memory.
func (g Cgroup) Read(t *testing.T) (peak, killed int) {
	t.Helper()
	peakFile, eventsFile := "memory.peak", "memory.events"
	if g.v1 {
		peakFile, eventsFile = "memory.max_usage_in_bytes", "memory.oom_control"
	}
	p, perr := os.ReadFile(filepath.Join(g.dir, peakFile))
	e, eerr := os.ReadFile(filepath.Join(g.dir, eventsFile))
	peak, err := strconv.Atoi(strings.TrimSpace(string(p)))
	m := regexp.MustCompile(`(?m)^oom_kill (\d+)$`).FindSubmatch(e)
	if perr != nil || eerr != nil || err != nil || m == nil {
		t.Fatalf("cannot read the cgroup: %v, %v, %v: %s", perr, eerr, err, e)
	}
	killed, err = strconv.Atoi(string(m[1]))
	if err != nil {
		t.Fatal(err)
	}
	return peak, killed
}
