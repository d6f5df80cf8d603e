package monitoring

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	ut "github.com/cachalot-registry/cachalot/upstream/upstreamtest"
)

// story is an hour of a mirror's life, and Prometheus' view of it.
type story struct {
	t         *testing.T
	mirror    *mirror
	prom      *prometheus
	dashboard dashboard
	hub       *ut.Registry // docker.io: counts pulls
	ghcr      *ut.Registry // goes down
	quay      *ut.Registry // fails sometimes
	corp      *ut.Registry // needs a password
	images    []ut.Image   // of the hub, pulled all the time
	tools     []ut.Image   // of ghcr.io
	next      atomic.Uint64
	before    map[string]bool // alerts that fired in the previous chapter
	chapters  []chapter
	erring    bool            // some clients get errors; whether they are too many depends on the others' speed
	erred     bool            // errors go on to count for days, which the story does not last
	seen      map[[2]int]bool // panels' queries, by panel and place in it, that had data
}

// chapter is the state of the dashboard and the alerts at its end.
type chapter struct {
	title  string
	alerts []string
	panels map[string][]string // by title
}

// TestStory runs an hour of a mirror in a minute: normal work, a storm, a registry down, a
// used-up rate limit, a full disk, and more faults. Only the expected alerts fire, and no
// panel is empty. CACHALOT_TEST_STORY=1 enables it. CACHALOT_WRITE_STORY=FILE also writes
// the results as a table.
func TestStory(t *testing.T) {
	if os.Getenv("CACHALOT_TEST_STORY") == "" {
		t.Skip("what passes a minute in half a second wants the machine for itself: with CACHALOT_TEST_STORY=1, as .ci/run has it")
	}
	program(t, "prometheus")
	rules, err := os.ReadFile(files + "alerts.yaml")
	if err != nil {
		t.Fatal(err)
	}
	s := &story{
		t: t, dashboard: readDashboard(t), before: map[string]bool{}, seen: map[[2]int]bool{},
		hub:  ut.New(t, ut.Options{Quota: quotaSize, CDN: true}),
		ghcr: ut.New(t, ut.Options{}),
		quay: ut.New(t, ut.Options{}),
		corp: ut.New(t, ut.Options{Auth: ut.Basic, Username: "ci", Password: "right"}),
	}
	s.next.Store(1000)
	for i := range 3 {
		s.images = append(s.images, s.hub.AddImage("library/base", fmt.Sprint(i), ut.NewImage(uint64(10+i), mib, 200_000)))
		s.tools = append(s.tools, s.ghcr.AddImage("acme/tool", fmt.Sprint(i), ut.NewImage(uint64(20+i), 300_000)))
	}
	password := filepath.Join(t.TempDir(), "password")
	if err := os.WriteFile(password, []byte("right"), 0o600); err != nil {
		t.Fatal(err)
	}
	s.mirror = startMirror(t, "tags: {fresh_for: 1s, negative_for: 1ms}\n"+
		"upstreams: {docker.io: {url: "+s.hub.URL+"}, ghcr.io: {url: "+s.ghcr.URL+"}, quay.io: {url: "+s.quay.URL+"}, "+
		"registry.corp: {url: "+s.corp.URL+", username: ci, password_file: "+password+"}}\n")
	s.prom = startPrometheus(t, s.mirror.admin, s.mirror.startNode(), quickly(string(rules)))

	// The jobs of a CI that runs all the time.
	defer every(200*time.Millisecond, func(ctx context.Context) {
		i := int(s.next.Add(1) % 3)
		s.mirror.pull(ctx, "docker.io", "library/base", fmt.Sprint(i), s.images[i])
		s.mirror.pull(ctx, "ghcr.io", "acme/tool", fmt.Sprint(i), s.tools[i])
	})()

	await(t, time.Minute, "Prometheus has begun to scrape", func() bool {
		return len(s.prom.query(t, "up == 1")) == 2 && len(s.prom.firing(t)) == 0
	}, s.mirror.said)
	s.tell("A quiet morning", 12)
	s.storm()
	s.tell("A storm of 40 clients", 8)
	s.outage()
	s.quota()
	s.pressure()
	s.troubles(password)
	s.checkMetrics(s.mirror.metrics())
	s.mirror.kill()
	s.tell("The mirror is killed", 0, "CachalotDown", "CachalotNodesWithoutMirror")
	s.checkPanels()
	s.checkNames()
	if name := os.Getenv("CACHALOT_WRITE_STORY"); name != "" {
		if err := os.WriteFile(name, []byte(s.table()), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// tell waits at least this many minutes, until each of these alerts has fired. Alerts of
// the previous chapter may still fire until then; others may not.
func (s *story) tell(title string, minutes int, alerts ...string) {
	s.t.Helper()
	begun := time.Now()
	least := time.After(time.Duration(minutes) * minute)
	want := map[string]bool{}
	for _, a := range alerts {
		want[a] = true
	}
	var firing map[string]bool
	fired := map[string]bool{} // expected alerts that have fired; some may have ended when the last one fires
	passed := false
	killed := slices.Contains(alerts, "CachalotDown") // after a kill, rules over an hour still fire
	await(s.t, time.Minute, title, func() bool {
		firing = s.prom.firing(s.t)
		maps.DeleteFunc(firing, func(a string, _ bool) bool {
			return untold()[a] != "" || s.erring && a == "CachalotErrors" || s.erred && a == "CachalotErrorsPersist"
		})
		over := true // the chapter before
		for a := range firing {
			if want[a] {
				fired[a] = true
				continue
			}
			over = false
			if !s.before[a] {
				s.t.Errorf("%s: %s fires", title, a)
				s.before[a] = true // report it once
			}
		}
		select {
		case <-least:
			passed = true
		default:
		}
		return passed && len(fired) == len(want) && (over || killed)
	}, func() string {
		return fmt.Sprintf("alerts %v fire, %v have fired, want %v; pending: %v\n%s", slices.Sorted(maps.Keys(firing)), slices.Sorted(maps.Keys(fired)), alerts,
			s.prom.query(s.t, `ALERTS{alertstate="pending"}`), s.mirror.said())
	})
	maps.Copy(fired, firing)
	c := chapter{title: title, alerts: slices.Sorted(maps.Keys(fired)), panels: s.look()}
	s.chapters = append(s.chapters, c)
	s.before = fired
	s.t.Logf("%s: %.1f s, %v", title, time.Since(begun).Seconds(), c.alerts)
}

// fresh adds a new image to a registry.
func (s *story) fresh(up *ut.Registry, repository string, layers ...int) (tag string, img ut.Image) {
	n := s.next.Add(1)
	tag = fmt.Sprint("v", n)
	return tag, up.AddImage(repository, tag, ut.NewImage(n, layers...))
}

// storm: many clients pull the same new image at once.
func (s *story) storm() {
	tag, img := s.fresh(s.hub, "library/base", 4*mib, 2*mib)
	s.hub.Fault(ut.Match{Op: ut.CDN, Reference: img.Layers[0].Digest.String(), Times: 1}, ut.CutAfter(mib)) // with one broken body
	slow := s.hub.Fault(ut.Match{Op: ut.CDN}, ut.Throttle(4*mib))
	defer slow.Remove()
	var all sync.WaitGroup
	for range 40 {
		all.Go(func() {
			if !s.mirror.pull(s.t.Context(), "docker.io", "library/base", tag, img) {
				s.t.Error("a pull of the storm failed")
			}
		})
	}
	all.Wait()
}

// outage: a registry goes down and comes back.
func (s *story) outage() {
	s.ghcr.Down()
	missing, img := s.fresh(s.ghcr, "acme/tool", 1000)
	stop := every(100*time.Millisecond, func(ctx context.Context) {
		s.mirror.pull(ctx, "ghcr.io", "acme/tool", missing, img) // it is not stored, so it fails
	})
	s.tell("ghcr.io is gone", 0, "CachalotUpstreamDown", "CachalotStale", "CachalotErrors", "CachalotErrorsPersist")
	s.erred = true
	stop()
	s.ghcr.Up()
	s.tell("ghcr.io is back", 0)
}

// quota: pulls of new images until Docker Hub's rate limit.
func (s *story) quota() {
	pull := func(ctx context.Context) {
		tag, img := s.fresh(s.hub, "library/app", 1000)
		s.mirror.pull(ctx, "docker.io", "library/app", tag, img)
	}
	for s.hub.Count(ut.GetManifest) < quotaSize*55/100 {
		pull(s.t.Context())
	}
	stop := every(time.Second, pull) // until the alert fires
	s.tell("Docker Hub's limit comes near", 0, "CachalotQuotaLow")
	stop()
	stop = every(50*time.Millisecond, pull)
	s.tell("Docker Hub's limit is spent", 0, "CachalotQuotaSpent", "CachalotErrors")
	stop()
	s.hub.Refill()
	s.tell("A new window begins", 0)
}

// pressure: more new blobs than the limit allows, and then a large file of another program.
func (s *story) pressure() {
	blob := func(ctx context.Context) {
		n := s.next.Add(1)
		c := ut.NewContent("", ut.Random(n, 2*mib))
		s.quay.AddBlob("acme/data", c)
		if status := s.mirror.get(ctx, blobPath("quay.io", "acme/data", c)); status != http.StatusOK && ctx.Err() == nil {
			s.t.Errorf("a new blob: %d", status)
		}
	}
	stop := every(100*time.Millisecond, blob)
	defer func() { stop() }()
	s.tell("More is pulled than the disk holds", 0, "CachalotCacheTooSmall")
	stop() // while the disk fills, blobs would be evicted for the other file
	var fs unix.Statfs_t
	if err := unix.Statfs(s.mirror.disk, &fs); err != nil {
		s.t.Fatal(err)
	}
	other := filepath.Join(s.mirror.disk, "other")
	f, err := os.Create(other)
	if err != nil {
		s.t.Fatal(err)
	}
	if err := unix.Fallocate(int(f.Fd()), 0, 0, int64(fs.Bavail)*fs.Bsize-8*mib); err != nil {
		s.t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		s.t.Fatal(err)
	}
	stop = every(100*time.Millisecond, blob)
	s.tell("Another program fills the disk", 0, "CachalotCacheTooSmall", "CachalotDiskFull")
	stop()
	if err := os.Remove(other); err != nil {
		s.t.Fatal(err)
	}
}

// troubles: all other faults.
func (s *story) troubles(password string) {
	t := s.t
	_, lie := s.fresh(s.quay, "acme/data", 1000)
	s.quay.Fault(ut.Match{Reference: lie.Layers[0].Digest.String()}, ut.WrongBytes())
	s.mirror.get(t.Context(), blobPath("quay.io", "acme/data", lie.Layers[0]))

	rotten := ut.NewContent("", ut.Random(1, mib))
	s.quay.AddBlob("acme/data", rotten)
	s.mirror.get(t.Context(), blobPath("quay.io", "acme/data", rotten))
	name := filepath.Join(s.mirror.disk, "cache/blobs/sha256", rotten.Digest.Encoded()[:2], rotten.Digest.Encoded())
	await(t, 10*time.Second, "the blob is kept", func() bool { _, err := os.Stat(name); return err == nil }, s.mirror.said)
	if err := os.Truncate(name, 1000); err != nil {
		t.Fatal(err)
	}
	s.mirror.get(t.Context(), blobPath("quay.io", "acme/data", rotten))

	if err := os.Remove(password); err != nil {
		t.Fatal(err)
	}
	defer every(4*minute, func(ctx context.Context) { s.mirror.get(ctx, "/registry.corp/v2/acme/app/manifests/1") })()

	if err := os.WriteFile(s.mirror.config, []byte("upstream: {}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := s.mirror.cmd.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	certify(t, s.mirror.config, time.Hour)
	s.mirror.occupy(clients - 4)

	s.erring = true
	// Every second request to quay.io fails, each for another object, because the mirror
	// does not retry a failed object for a while.
	s.quay.Fault(ut.Match{Reference: "bad"}, ut.Status(http.StatusServiceUnavailable))
	s.quay.AddImage("acme/good", "1", ut.NewImage(3, 1000))
	n := 0
	defer every(minute, func(ctx context.Context) {
		n++
		s.mirror.get(ctx, fmt.Sprintf("/quay.io/v2/acme/bad-%d/manifests/bad", n))
		s.mirror.get(ctx, fmt.Sprintf("/quay.io/v2/acme/good/manifests/nosuch-%d", n))
	})()
	s.tell("All else that can happen", 0, "CachalotCacheTooSmall", "CachalotWrongContent", "CachalotDiskErrors", "CachalotLoginFails",
		"CachalotConfigNotReloaded", "CachalotCertificateExpires", "CachalotSaturated", "CachalotUpstreamErrors")
}

// checkPanels: each query of the dashboard had data in a chapter.
func (s *story) checkPanels() {
	for _, p := range s.dashboard.Panels {
		for i, q := range p.Targets {
			if !s.seen[[2]int{p.ID, i}] {
				s.t.Errorf("the panel %q shows nothing for %s", p.Title, q.Expr)
			}
		}
	}
}

// checkNames: the dashboard and the alerts use all of cachalot's metrics, and no others.
func (s *story) checkNames() {
	var names []string
	s.prom.get(s.t, "/api/v1/label/__name__/values", &names)
	exported := map[string]bool{}
	for _, n := range names {
		exported[n] = true
	}
	rules, err := os.ReadFile(files + "alerts.yaml")
	if err != nil {
		s.t.Fatal(err)
	}
	text := string(rules)
	for _, p := range s.dashboard.Panels {
		for _, q := range p.Targets {
			text += q.Expr + "\n"
		}
	}
	used := map[string]bool{}
	for _, name := range regexp.MustCompile(`\b(?:cachalot|process)_\w+`).FindAllString(text, -1) {
		used[name] = true
		if !exported[name] {
			s.t.Errorf("%s is in the dashboard or an alert, and not in /metrics", name)
		}
	}
	for name := range exported {
		family := regexp.MustCompile(`_(bucket|sum|count)$`).ReplaceAllString(name, "")
		if strings.HasPrefix(name, "cachalot_") && !used[name] && !used[family+"_bucket"] {
			s.t.Errorf("%s is for nobody: neither a panel nor an alert has it", name)
		}
	}
}
