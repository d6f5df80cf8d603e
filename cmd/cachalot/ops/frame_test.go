package ops

import (
	"strings"
	"testing"
	"time"

	"github.com/cachalot-registry/cachalot/proxy/admin"
)

// lookedAt is what a mirror reports at this time after its start.
func lookedAt(after time.Duration, requests, done int64) looked {
	started := time.Date(2026, 1, 2, 3, 0, 0, 0, time.UTC)
	whole, limit, left := int64(100<<20), int64(100), int64(42)
	hub := admin.TrafficStats{Requests: requests, Results: map[string]int64{"hit": requests / 2}, ServedBytes: requests << 20, FetchedBytes: done, SavedBytes: requests<<20 - done}
	return looked{
		stats: admin.StatsAnswer{
			Version: "1.2", Started: started, Now: started.Add(after),
			Storage: admin.StorageStats{Counted: true, Blobs: 1234, Bytes: 10 << 30, LimitBytes: 50 << 30},
			Fills:   admin.FillStats{Running: 2, Limit: 256}, Traffic: hub,
			Upstreams: []admin.UpstreamStats{{Name: "a.example"}, {Name: "docker.io", TrafficStats: hub}, {Name: "z.example"}},
		},
		upstreams: map[string]admin.UpstreamAnswer{
			"a.example": {Name: "a.example", State: "ok"},
			"docker.io": {Name: "docker.io", State: "ok", Downloads: 2, URLs: []admin.URLAnswer{{Accounts: []admin.AccountAnswer{{Name: "ci", Key: "username", Limit: &limit, Remaining: &left}}}}},
			"z.example": {Name: "z.example", State: "failing"},
		},
		fills: []admin.FillAnswer{
			{Digest: "sha256:0123456789abcdef0123", Name: "docker.io/acme/app", State: "downloading", Started: started, Done: done, Size: &whole, Readers: 3},
			{Digest: "sha256:fedcba9876543210", Name: "docker.io/\x1b[2J", State: "waiting", Started: started},
		},
	}
}

func lines(b []byte) []string { return strings.Split(strings.TrimSuffix(string(b), "\n"), "\n") }

func TestFrame(t *testing.T) {
	t.Parallel()
	before, now := lookedAt(time.Hour, 100, 20<<20), lookedAt(time.Hour+2*time.Second, 300, 50<<20)
	for _, test := range []struct {
		name   string
		before *looked
		want   string
	}{
		{"first", nil, `cachalot 1.2 at http://mirror:5001, started 1 hour ago; 04:00:02 UTC
Stored 10 GiB in 1,234 blobs, 20.0 % of the limit of 50 GiB
Total  300 requests, 50.0 % hit; 300 MiB served, 50 MiB fetched, 250 MiB (83.3 %) saved
Now    - requests, - hit; - served, - fetched; 2 of 256 downloads

UPSTREAM   STATE    DOWNLOADS  REQUESTS  SERVED  FETCHED  PULLS LEFT
z.example  failing  0          -         -       -        -
docker.io  ok       2          -         -       -        ci: 42 of 100
a.example  ok       0          -         -       -        -

DOWNLOAD OF         STATE                                DONE               RATE  READERS  DIGEST
docker.io/acme/app  downloading  [##########..........]  50 MiB of 100 MiB  -     3        sha256:0123456789ab
docker.io/\x1b[2J   waiting      [????????????????????]  0 B                -     0        sha256:fedcba987654
`},
		{"later", &before, `cachalot 1.2 at http://mirror:5001, started 1 hour ago; 04:00:02 UTC
Stored 10 GiB in 1,234 blobs, 20.0 % of the limit of 50 GiB
Total  300 requests, 50.0 % hit; 300 MiB served, 50 MiB fetched, 250 MiB (83.3 %) saved
Now    100/s requests, 50.0 % hit; 100 MiB/s served, 15 MiB/s fetched; 2 of 256 downloads

UPSTREAM   STATE    DOWNLOADS  REQUESTS  SERVED     FETCHED   PULLS LEFT
z.example  failing  0          0/s       0 B/s      0 B/s     -
docker.io  ok       2          100/s     100 MiB/s  15 MiB/s  ci: 42 of 100
a.example  ok       0          0/s       0 B/s      0 B/s     -

DOWNLOAD OF         STATE                                DONE               RATE      READERS  DIGEST
docker.io/acme/app  downloading  [##########..........]  50 MiB of 100 MiB  15 MiB/s  3        sha256:0123456789ab
docker.io/\x1b[2J   waiting      [????????????????????]  0 B                0 B/s     0        sha256:fedcba987654
`},
	} {
		if got := string(frame("http://mirror:5001", now, test.before, "", 0, 0)); got != test.want {
			t.Errorf("%s:\n%s", test.name, got)
		}
	}
	// A restarted mirror counts from 0.
	restarted := now
	restarted.stats.Started = now.stats.Now
	if got := lines(frame("x", restarted, &before, "", 0, 0))[3]; !strings.HasPrefix(got, "Now    - requests, - hit; - served") {
		t.Error(got)
	}
	if got := lines(frame("x", now, &before, "no answer", 0, 0))[0]; got != "NO ANSWER: no answer" {
		t.Error(got)
	}
}

// Every frame fits the terminal.
func TestFrameFits(t *testing.T) {
	t.Parallel()
	now := lookedAt(time.Hour, 100, 1)
	for range 40 {
		now.stats.Upstreams = append(now.stats.Upstreams, now.stats.Upstreams[0])
		now.fills = append(now.fills, now.fills[0])
	}
	for height := 1; height < 120; height++ {
		for _, width := range []int{1, 20, 80, 200} {
			got := lines(frame("http://mirror:5001", now, nil, "", width, height))
			if len(got) > height {
				t.Fatalf("%d lines, of %d", len(got), height)
			}
			for _, line := range got {
				if len([]rune(line)) > width {
					t.Fatalf("%q is wider than %d", line, width)
				}
			}
			if height == 24 && width == 200 && (len(got) != 24 || !strings.Contains(strings.Join(got, "\n"), "and 36 more") || got[23] != "and 35 more") {
				t.Errorf("%q", got)
			}
		}
	}
}
