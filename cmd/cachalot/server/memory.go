package server

import (
	"errors"
	"fmt"
	"log/slog"
	"math"
	"runtime/debug"

	"github.com/KimMachineGun/automemlimit/memlimit"

	"github.com/cachalot-registry/cachalot/bounds"
)

const (
	// cgroupShare of a cgroup's memory is the Go runtime's limit, unless GOMEMLIMIT sets one.
	// The rest is for memory that only the kernel counts, such as socket buffers.
	cgroupShare = 0.9
	// budgetPart divides the limit: one part is for content that is held in memory.
	// Connections, downloads and the index have the others.
	budgetPart = 4
	// leastBudget is the least budget that a mirror works with.
	leastBudget = 16 << 20
)

// newMemory returns the budget for manifests and lists. It is part of the process's memory
// limit: GOMEMLIMIT, or most of its cgroup's memory, or the machine's.
func newMemory(share float64, log *slog.Logger) (*bounds.Memory, error) {
	_, err := memlimit.Set(memlimit.WithRatio(cgroupShare), memlimit.WithProvider(memlimit.FromCgroup))
	if err != nil && !errors.Is(err, memlimit.ErrNoLimit) && !errors.Is(err, memlimit.ErrNoCgroup) && !errors.Is(err, memlimit.ErrCgroupsNotSupported) {
		log.Warn("cannot read the memory limit of the cgroup; set GOMEMLIMIT", "error", err)
	}
	limit := debug.SetMemoryLimit(-1)
	if limit == math.MaxInt64 {
		all, err := memlimit.FromSystem()
		if err != nil {
			return nil, fmt.Errorf("cannot read the machine's memory; set GOMEMLIMIT: %w", err)
		}
		limit = int64(min(all, math.MaxInt64))
	}
	m := bounds.NewMemory(max(leastBudget, limit/budgetPart), share)
	log.Debug("memory", "limit_bytes", limit, "budget_bytes", m.Limit())
	return m, nil
}
