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

// giveWay gives this process, which runs attackers and registries, only the idle CPU time
// until end is called. In practice they run on other machines.
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
	hub     *ut.Registry  // an honest registry: docker.io
	private *ut.Registry  // private.test, which needs an account
	evil    *ut.Registry  // evil.test
	image   ut.Image      // stored image of the honest registry
	secret  ut.Content    // stored blob of team/app of the private registry
	quiet   time.Duration // p99 of an honest client's pulls before the attack
	busy    time.Duration // the same while the attack goes elsewhere; 0: not measured
	// scheduled: the mirror has priority over the attackers, and an honest client over
	// both. Without root, the figures are those of a busy machine.
	scheduled bool
}

// limit is the memory of a cachalot under attack: half of the chart's default.
const limit = 512 << 20

// connections returns the max_connections that the chart sets for that limit.
func connections(t *testing.T) string {
	t.Helper()
	page, err := os.ReadFile("../../docs/kubernetes.md") // a test of the chart checks this page
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
	s.quiet = percentile(s.honestly(100, func() {}).Pulls[1:], 99) // the first pull fetches
	return s
}

// from returns a client with its own source address, which reuses its connections.
func from(t *testing.T, address string) *http.Client {
	t.Helper()
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(address)}}
	tr := &http.Transport{DialContext: d.DialContext, MaxIdleConnsPerHost: 16}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr}
}

// get requests content and compares it.
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

// during runs attack, and checks that cachalot lives, its probe gets a response, and stored
// content is served. It logs the times and returns the peak memory in bytes.
func (s *siege) during(attack func()) (peak int) {
	s.t.Helper()
	return s.beside(func() {
		defer s.giveWay()()
		attack()
	})
}

// beside is during for an attack that is not a flood.
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

// elsewhere measures an honest client while the attackers flood the registry directly,
// without the mirror.
func (s *siege) elsewhere(attack func()) {
	s.t.Helper()
	found := s.honestly(1, func() {
		defer s.giveWay()()
		attack()
	})
	s.busy = percentile(found.Pulls, 99)
}

// floodRegistry sends n requests to the hostile registry itself, 100 a second.
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

// attempts returns the number of attacks: few, times the variable if it is set.
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

// asFast is a flood without a rate limit. On one machine it takes CPU time from the mirror.
const asFast = 0

// flood calls attack n times, at most at in parallel and perSecond a second.
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

// hangUp sends a request to a server and closes the connection at once.
func hangUp(server, address, path string) {
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(address)}, Timeout: 5 * time.Second}
	c, err := d.Dial("tcp", server[len("http://"):])
	if err != nil {
		return
	}
	_, _ = fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: x\r\n\r\n", path)
	_ = c.Close()
}

// waitKept waits until pulled content is on disk.
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

// rests waits until the work of clients that left has ended.
func (s *siege) rests() {
	s.t.Helper()
	s.until("goroutines stay", func() bool { return s.Metrics(s.t)["go_goroutines"] <= 200 })
}

// until polls done, because the process sends no events.
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
