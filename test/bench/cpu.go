package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// cores are the processors of the server and of the clients. Both are empty if there is
// only one processor; then nothing is pinned.
type cores struct{ server, client []int }

// splitCores gives the last processor to the server under test and the others
// to clients and the upstream.
func splitCores() (cores, error) {
	all, err := allowed(0)
	if err != nil || len(all) < 2 {
		return cores{}, err
	}
	return cores{server: all[len(all)-1:], client: all[:len(all)-1]}, nil
}

// allowed returns the processors that a thread may use; 0 is this thread.
func allowed(id int) ([]int, error) {
	var set unix.CPUSet
	if err := unix.SchedGetaffinity(id, &set); err != nil {
		return nil, fmt.Errorf("read the processors of %d: %w", id, err)
	}
	var list []int
	for i := range len(set) * 64 {
		if set.IsSet(i) {
			list = append(list, i)
		}
	}
	return list, nil
}

func cpuSet(cpus []int) *unix.CPUSet {
	var set unix.CPUSet
	for _, c := range cpus {
		set.Set(c)
	}
	return &set
}

// pinned runs f, which starts a process, so that the process gets these processors. A Go
// program sets its GOMAXPROCS accordingly.
func pinned(cpus []int, f func() error) error {
	if len(cpus) == 0 {
		return f()
	}
	runtime.LockOSThread() // a child inherits the processors of the thread that starts it
	defer runtime.UnlockOSThread()
	before, err := allowed(0)
	if err != nil {
		return err
	}
	if err := unix.SchedSetaffinity(0, cpuSet(cpus)); err != nil {
		return fmt.Errorf("pin to processor %v: %w", cpus, err)
	}
	err = f()
	return errors.Join(err, unix.SchedSetaffinity(0, cpuSet(before)))
}

// pin moves all threads of a process and its descendants. Threads that they start later
// inherit that.
func pin(pid int, cpus []int) error {
	if len(cpus) == 0 {
		return nil
	}
	for _, p := range family(pid) {
		threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*", p))
		if err != nil {
			return err
		}
		for _, t := range threads {
			id, err := strconv.Atoi(filepath.Base(t))
			if err != nil {
				return err
			}
			if err := unix.SchedSetaffinity(id, cpuSet(cpus)); err != nil && !errors.Is(err, unix.ESRCH) {
				return fmt.Errorf("pin process %d to processor %v: %w", p, cpus, err)
			}
		}
	}
	return nil
}

// family is a process and all its descendants.
func family(pid int) []int {
	list := []int{pid}
	for i := 0; i < len(list); i++ {
		// Each thread has its own list of children.
		files, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", list[i]))
		if err != nil {
			continue
		}
		for _, f := range files {
			b, err := os.ReadFile(f)
			if err != nil {
				continue // it has ended
			}
			for s := range strings.FieldsSeq(string(b)) {
				if child, err := strconv.Atoi(s); err == nil {
					list = append(list, child)
				}
			}
		}
	}
	return list
}

// cpuTime is the CPU time, user and system, of a process and its descendants, in
// nanoseconds. Children that have ended count in steps of 10 ms.
func cpuTime(pid int) (time.Duration, error) {
	var sum time.Duration
	for _, p := range family(pid) {
		// clock_getcpuclockid(3): the process's CPUCLOCK_SCHED.
		var ts unix.Timespec
		err := unix.ClockGettime(int32(^p<<3|2), &ts)
		ended, err2 := endedChildren(p)
		if err := errors.Join(err, err2); err != nil {
			if p != pid {
				continue // it has ended
			}
			return 0, fmt.Errorf("read the processor time of process %d: %w", pid, err)
		}
		sum += time.Duration(ts.Nano()) + ended
	}
	return sum, nil
}

// endedChildren is the CPU time of children that the process has waited for (cutime and
// cstime of proc_pid_stat(5)), in steps of 10 ms.
func endedChildren(pid int) (time.Duration, error) {
	const tick = 10 * time.Millisecond // USER_HZ is 100
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	// The second field, the name, is in brackets and may contain brackets.
	fields := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	const cutime = 16 - 3
	if len(fields) < cutime+2 {
		return 0, fmt.Errorf("%q has too few fields", b)
	}
	var sum time.Duration
	for _, f := range fields[cutime : cutime+2] {
		n, err := strconv.ParseInt(f, 10, 64)
		if err != nil {
			return 0, err
		}
		sum += time.Duration(n) * tick
	}
	return sum, nil
}

// peakMemory is the largest resident size so far (VmHWM) of a process and its descendants,
// in bytes.
func peakMemory(pid int) (int64, error) {
	var sum int64
	for _, p := range family(pid) {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p))
		if err != nil {
			if p != pid {
				continue
			}
			return 0, fmt.Errorf("read the peak memory: %w", err)
		}
		for lines := bufio.NewScanner(bytes.NewReader(b)); lines.Scan(); {
			f := strings.Fields(lines.Text())
			if len(f) < 2 || f[0] != "VmHWM:" {
				continue
			}
			kib, err := strconv.ParseInt(f[1], 10, 64)
			if err != nil {
				return 0, fmt.Errorf("read the peak memory: %w", err)
			}
			sum += kib << 10
		}
	}
	return sum, nil
}
