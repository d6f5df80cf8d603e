package process

import (
	"fmt"
	"net/http"
	"os"
	"regexp"
	"strconv"
	"sync"
	"testing"

	"github.com/cachalot-registry/cachalot/upstream/upstreamtest"
)

// TestMemory: 50 clients of one cold 64 MiB blob cost one download, and less
// than 150 MiB at the peak, badger and all.
func TestMemory(t *testing.T) {
	t.Parallel()
	up := upstreamtest.New(t, upstreamtest.Options{Auth: upstreamtest.Bearer})
	blob := upstreamtest.NewContent("", upstreamtest.Random(2, 64<<20))
	up.AddBlob("library/app", blob)
	s := start(t, t.TempDir(), up.URL)
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			if err := s.fetch(client, blob.Digest); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.cmd.Process.Pid))
	if err != nil {
		t.Skip("the peak is read from /proc: ", err)
	}
	peak := regexp.MustCompile(`VmHWM:\s+(\d+) kB`).FindSubmatch(status)
	if peak == nil {
		t.Fatalf("no VmHWM in %s", status)
	}
	kib, err := strconv.Atoi(string(peak[1]))
	if err != nil || kib > 150<<10 {
		t.Errorf("peak memory %d MiB, %v", kib>>10, err)
	}
	t.Logf("peak memory %d MiB", kib>>10)
	if sent := up.Sent(blob.Digest); sent != blob.Size || up.Count(upstreamtest.Token) != 1 {
		t.Errorf("%d bytes and %d tokens from upstream", sent, up.Count(upstreamtest.Token))
	}
}
