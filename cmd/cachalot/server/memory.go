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
	// cgroupShare of a cgroup's memory is the runtime's limit, where GOMEMLIMIT sets none:
	// what the kernel counts besides, such as buffers of sockets, has the rest.
	cgroupShare = 0.9
	// budgetPart of the limit is for content that is held in memory. Connections, downloads
	// and the index have the others.
	budgetPart = 4
	// leastBudget is for what no mirror can do without.
	leastBudget = 16 << 20
)

// newMemory makes the budget for manifests and lists of the memory that the process may
// have: GOMEMLIMIT, or most of its cgroup's, or the machine's.
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
