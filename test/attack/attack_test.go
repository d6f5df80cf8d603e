package attack

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cachalot-registry/cachalot/test/cachalotd"
	ut "github.com/cachalot-registry/cachalot/upstream/upstreamtest"
)

func TestMain(m *testing.M) {
	if config := os.Getenv(honestEnv); config != "" {
		if err := beHonest(config); err != nil {
			_, _ = fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	cachalotd.Main(m)
}

// giveWay has this process, which is attackers and registries, have what processors the
// mirror leaves, until end is called. They are on machines of their own, elsewhere.
func (s *siege) giveWay() (end func()) {
	s.t.Helper()
	set := func(kind string) {
		if !s.scheduled {
			return
		}
		out, err := exec.Command("chrt", "--all-tasks", kind, "--pid", "0", strconv.Itoa(os.Getpid())).CombinedOutput() //nolint:noctx // it sets and ends
		if err != nil {
			s.t.Errorf("chrt: %v: %s", err, out)
		}
	}
	set("--idle")
	return func() { set("--other") }
}

// siege is a cachalot under attack.
type siege struct {
	*cachalotd.Process

	t       *testing.T
	cgroup  cachalotd.Cgroup
	hub     *ut.Registry  // an honest one: docker.io
	private *ut.Registry  // private.test, which wants an account
	evil    *ut.Registry  // evil.test
	image   ut.Image      // of the honest one, and kept
	secret  ut.Content    // of team/app of the private one, and kept
	quiet   time.Duration // the 99th percentile of an honest client's pulls before the attack
	busy    time.Duration // of pulls while the attack went elsewhere; 0: not measured
	// scheduled: the mirror comes before who attacks it, and an honest client before both.
	// That takes root; where it may not be, the figures are those of a busy machine.
	scheduled bool
}

// limit is the memory that a cachalot under attack has: half of the chart's default.
const limit = 512 << 20

// connections is the max_connections that the chart sets for that limit.
func connections(t *testing.T) string {
	t.Helper()
	page, err := os.ReadFile("../../docs/kubernetes.md") // a test of the chart holds it
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(`(?m)^\| 512Mi \| (\d+) \|$`).FindSubmatch(page)
	if m == nil {
		t.Fatal("docs/kubernetes.md does not say how many connections 512Mi hold")
	}
	return string(m[1])
}

// lay starts a cachalot with honest registries and a hostile one.
func lay(t *testing.T, config string) *siege {
	t.Helper()
	if !strings.Contains(config, "max_connections") {
		config += "\nmax_connections: " + connections(t)
	}
	s := &siege{
		t: t, cgroup: cachalotd.NewCgroup(t, limit), hub: ut.New(t, ut.Options{}), evil: ut.New(t, ut.Options{}),
		private:   ut.New(t, ut.Options{Auth: ut.Basic, Username: "ci", Password: "secret"}),
		scheduled: exec.CommandContext(t.Context(), "chrt", "--rr", "1", "true").Run() == nil,
	}
	s.image = s.hub.AddImage("library/kept", "1", ut.NewImage(1, 100_000))
	s.secret = ut.NewContent("", ut.Random(2, 300_000))
	s.private.AddBlob("team/app", s.secret)
	s.Process = cachalotd.Start(t, fmt.Sprintf(`%s
storage: {path: %q, min_free: 0, max_size: 128MiB}
upstreams:
  docker.io: {url: %s}
  evil.test: {url: %s}
  private.test: {url: %s, username: ci, password: secret}
`, config, t.TempDir(), s.hub.URL, s.evil.URL, s.private.URL), s.cgroup.Wrap()...)
	if err := s.get(t.Context(), http.DefaultClient, "/v2/private.test/team/app/blobs/"+s.secret.Digest.String(), s.secret); err != nil {
		t.Fatal(err)
	}
	s.waitKept(s.secret)
	s.quiet = percentile(s.honestly(100, func() {}).Pulls[1:], 99) // the first one fetches
	return s
}

// from is a client of an address of its own, which keeps its connections.
func from(t *testing.T, address string) *http.Client {
	t.Helper()
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(address)}}
	tr := &http.Transport{DialContext: d.DialContext, MaxIdleConnsPerHost: 16}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr}
}

// get asks for content, and compares it.
func (s *siege) get(ctx context.Context, client *http.Client, path string, want ut.Content) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.URL+path, http.NoBody)
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	switch {
	case err != nil:
		return fmt.Errorf("%s: %w", path, err)
	case resp.StatusCode != http.StatusOK:
		return fmt.Errorf("%s: %w: %s: %s", path, errStatus, resp.Status, bytes.TrimSpace(body))
	case !bytes.Equal(body, want.Bytes):
		return fmt.Errorf("%s: %d bytes that are not those of %s", path, len(body), want.Digest)
	}
	return nil
}

var errStatus = errors.New("refused")

// during holds that while attack goes on cachalot lives, its probe is answered, and what
// is kept is served. It prints how quickly, and what that took, and returns the most memory
// that it took, in bytes.
func (s *siege) during(attack func()) (peak int) {
	s.t.Helper()
	return s.beside(func() {
		defer s.giveWay()()
		attack()
	})
}

// beside is during, beside a work that is no flood.
func (s *siege) beside(attack func()) (peak int) {
	s.t.Helper()
	found := s.honestly(1, attack)
	select {
	case <-s.Ended():
		s.t.Fatalf("cachalot has died: %s", s.Log)
	default:
	}
	peak, killed := s.cgroup.Read(s.t)
	if killed != 0 {
		s.t.Errorf("%d processes killed", killed)
	}
	busy := ""
	if s.busy > 0 {
		busy = fmt.Sprint(", with the attack elsewhere ", s.busy)
	}
	s.t.Logf("peak of the cgroup %d of %d MiB, %.0f goroutines afterwards; %d probes, p99 %s, the longest %s; honest pulls p99 %s, quiet %s%s",
		peak>>20, limit>>20, s.Metrics(s.t)["go_goroutines"], len(found.Probes), percentile(found.Probes, 99), percentile(found.Probes, 100), percentile(found.Pulls, 99), s.quiet, busy)
	return peak
}

// elsewhere measures what the machine is to an honest client while attackers and their
// registry are busy with each other, and do not ask the mirror.
func (s *siege) elsewhere(attack func()) {
	s.t.Helper()
	found := s.honestly(1, func() {
		defer s.giveWay()()
		attack()
	})
	s.busy = percentile(found.Pulls, 99)
}

// floodRegistry gets n paths of the hostile registry itself, at once, and 100 a second.
func (s *siege) floodRegistry(n int, path func(i int) string) {
	flood(n, n, 100, func(i int) {
		resp, err := http.Get(s.evil.URL + path(i)) //nolint:noctx // loopback
		if err != nil {
			s.t.Error(err)
			return
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		_ = resp.Body.Close()
	})
}

// attempts is how often an attack is made: as often as the variable says, or few times.
func attempts(t *testing.T, few int) int {
	t.Helper()
	value := os.Getenv("CACHALOT_TEST_ATTACKS")
	if value == "" {
		return few
	}
	times, err := strconv.Atoi(value)
	if err != nil || times < 1 {
		t.Fatalf("CACHALOT_TEST_ATTACKS=%q: want how many times as often", value)
	}
	return few * times
}

// asFast is a flood as attackers can, which on one machine takes the processors from the
// mirror.
const asFast = 0

// flood calls attack n times, so many at once, and no more than so many a second.
func flood(n, at, perSecond int, attack func(i int)) {
	var paced <-chan time.Time
	if perSecond != asFast {
		tick := time.NewTicker(time.Second / time.Duration(perSecond))
		defer tick.Stop()
		paced = tick.C
	}
	next := make(chan int)
	var workers sync.WaitGroup
	for range at {
		workers.Go(func() {
			for i := range next {
				attack(i)
			}
		})
	}
	for i := range n {
		if paced != nil {
			<-paced
		}
		next <- i
	}
	close(next)
	workers.Wait()
}

// hangUp sends a server a request and leaves at once.
func hangUp(server, address, path string) {
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(address)}, Timeout: 5 * time.Second}
	c, err := d.Dial("tcp", server[len("http://"):])
	if err != nil {
		return
	}
	_, _ = fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: x\r\n\r\n", path)
	_ = c.Close()
}

// waitKept waits until content that was pulled is on disk.
func (s *siege) waitKept(c ut.Content) {
	s.t.Helper()
	s.until("the blob is not kept", func() bool {
		resp, err := http.Get(s.Admin + "/api/v1/blob?digest=" + c.Digest.String()) //nolint:noctx // loopback
		if err != nil {
			s.t.Fatal(err)
		}
		_ = resp.Body.Close()
		return resp.StatusCode == http.StatusOK
	})
}

// rests waits until what clients have left has ended.
func (s *siege) rests() {
	s.t.Helper()
	s.until("goroutines stay", func() bool { return s.Metrics(s.t)["go_goroutines"] <= 200 })
}

// until asks a process, which tells of no event, until done.
func (s *siege) until(not string, done func() bool) {
	s.t.Helper()
	look := time.NewTicker(5 * time.Millisecond)
	defer look.Stop()
	for !done() {
		select {
		case <-s.t.Context().Done():
			s.t.Fatal(not)
		case <-look.C:
		}
	}
}
