package storage

import (
	"sync/atomic"
	"testing"
	"time"
)

// TestReservedOnce: while a download takes what was reserved for it, the sum of both
// stays what the blob takes. It is tried with many blobs, for it is a matter of time.
func TestReservedOnce(t *testing.T) {
	const limit, size = 1 << 30, 1 << 20
	s := openStore(t, t.TempDir(), func(c *Config) { c.MaxSize = Size{Bytes: limit} })
	deadline := time.Now().Add(20 * time.Second)
	for i := int64(1); i <= 200 && time.Now().Before(deadline); i++ {
		var over atomic.Bool
		go func() {
			defer over.Store(true)
			mustFetch(t, s, &origin{content: content(uint64(i), size)}, Miss)
		}()
		for !over.Load() {
			if sum := s.over(0, 100) + limit; sum > i*size {
				t.Errorf("%d bytes are counted, of at most %d", sum, i*size)
				for !over.Load() {
					time.Sleep(time.Millisecond)
				}
				return
			}
		}
		settle(t, s)
	}
}
