package storage

import (
	"errors"
	"io/fs"
	"math"
	"time"

	"github.com/opencontainers/go-digest"
)

const (
	// scrubRate bounds the bytes read in a second: an eighth of a small cloud volume's
	// throughput (gp3: 125 MiB/s), and 9 TiB in a week.
	scrubRate = 16 << 20
	// scrubWeight is added to the bytes of each blob, so that many small blobs are spread
	// over the period too.
	scrubWeight = 64 << 10
)

// scrub reads each blob again once in scrubEvery, in the order of digests, and suspects at
// once. It measures the time that the process runs, so the clock may be wrong. Its position
// is stored in the index.
func (h *health) scrub() {
	if h.scrubEvery <= 0 {
		for h.rest(math.MaxInt64) {
		}
		return
	}
	last := h.scrubbed()
	saved := time.Now()
	for h.rest(min(h.scrubEvery, maintenance)) { // a start has other work, and a round may be empty
		for d, err := range h.disk.after(last) {
			begun := time.Now()
			var n int64
			if err != nil {
				h.log.Warn("cannot list blobs to scrub", "error", err)
			} else {
				n = h.recheck(d)
			}
			if h.ctx.Err() != nil {
				break
			}
			if err == nil {
				last = d
			}
			if time.Since(saved)+h.share(n)-time.Since(begun) >= maintenance {
				h.setScrubbed(last)
				saved = time.Now()
			}
			if !h.turn(begun, n) {
				break
			}
		}
		if h.ctx.Err() != nil {
			h.setScrubbed(last)
			return
		}
		last = ""
	}
}

// share returns the part of the period for a blob of so many bytes.
func (h *health) share(bytes int64) time.Duration {
	h.ledger.loaded(h.ctx)
	all, count := h.ledger.totals()
	part := float64(bytes+scrubWeight) / float64(max(all+count*scrubWeight, bytes+scrubWeight))
	return time.Duration(part * float64(h.scrubEvery))
}

// turn waits until the share of the blob that was begun at begun is over. The share
// changes when blobs are stored or evicted. It returns false when the store closes.
func (h *health) turn(begun time.Time, bytes int64) bool {
	for {
		left := h.share(bytes) - time.Since(begun)
		if !h.rest(min(left, maintenance)) {
			return false
		}
		if left <= maintenance {
			return true
		}
	}
}

// rest waits, and checks suspects while it waits. It returns false when the store closes.
func (h *health) rest(d time.Duration) bool {
	over := time.NewTimer(d)
	defer over.Stop()
	for {
		select {
		case <-h.ctx.Done():
			return false
		case <-over.C:
			return true
		case <-h.suspected:
		}
		for d := range h.takeSuspects() {
			h.recheck(d)
		}
	}
}

// recheck reads a blob again, and quarantines it if it is damaged.
func (h *health) recheck(d digest.Digest) (read int64) {
	read, bad, err := h.disk.check(h.ctx, d, h.pace.WaitN)
	h.metrics.scrubbed.Add(float64(read))
	switch {
	case bad != nil:
		h.quarantineFile(d, *bad)
	case err != nil && h.ctx.Err() == nil && !errors.Is(err, fs.ErrNotExist):
		h.log.Warn("cannot scrub blob", "digest", d, "error", err)
	}
	return read
}

// scrubbed returns the last digest that this round has read; "": none.
func (h *health) scrubbed() digest.Digest {
	last, err := h.ledger.index.ScrubPosition()
	if err != nil {
		h.log.Warn("cannot read scrub position; starting over", "error", err)
	}
	return last
}

func (h *health) setScrubbed(last digest.Digest) {
	if err := h.ledger.index.SetScrubPosition(last); err != nil {
		h.log.Warn("cannot record scrub position", "error", err)
	}
}
