package attack

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
)

// honest is a client of a cachalot under attack, and a kubelet's probe. It has its own
// process, because among thousands of attackers it would wait for them and not for
// cachalot.
type honest struct {
	Probe string                   // the URL of a probe
	Wants map[string]digest.Digest // the content of each round, by URL
	Pulls int                      // the minimum number of pulls
}

// seen is the result of an honest client.
type seen struct {
	Probes, Pulls []time.Duration
	Errors        []string // the first errors
}

// honestEnv has the honest client's settings as JSON, for its process.
const honestEnv = "CACHALOT_TEST_HONEST"

// beHonest is the honest client's process: it runs until its standard input ends, and
// prints its results.
func beHonest(config string) error {
	var h honest
	if err := json.Unmarshal([]byte(config), &h); err != nil {
		return err
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_, _ = io.Copy(io.Discard, os.Stdin)
	}()
	return json.NewEncoder(os.Stdout).Encode(h.watch(ended))
}

func (h honest) watch(ended <-chan struct{}) seen {
	var s seen
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 9)}}
	kubelet := &http.Client{Transport: &http.Transport{DialContext: d.DialContext, DisableKeepAlives: true}} // like a kubelet's
	again := time.NewTicker(20 * time.Millisecond)
	defer again.Stop()
	for done := false; !done || len(s.Pulls) < h.Pulls; {
		begun := time.Now()
		if _, err := fetch(kubelet, h.Probe); err != nil {
			s.failed("the probe", err)
		}
		s.Probes = append(s.Probes, time.Since(begun))
		begun = time.Now()
		for url, want := range h.Wants {
			if got, err := fetch(http.DefaultClient, url); err != nil {
				s.failed("an honest client", err)
			} else if got != want {
				s.failed("an honest client", fmt.Errorf("%s: %s in place of %s", url, got, want))
			}
		}
		s.Pulls = append(s.Pulls, time.Since(begun))
		select {
		case <-ended:
			done, ended = true, nil
		case <-again.C:
		}
	}
	return s
}

func (s *seen) failed(who string, err error) {
	if len(s.Errors) < 10 {
		s.Errors = append(s.Errors, fmt.Sprintf("%s: %v", who, err))
	}
}

// fetch reads a whole body and returns its digest.
func fetch(client *http.Client, url string) (digest.Digest, error) {
	resp, err := client.Get(url) //nolint:noctx // it must be answered
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	d := digest.Canonical.Digester()
	if _, err := io.Copy(d.Hash(), resp.Body); err != nil {
		return "", fmt.Errorf("%s: %w", url, err)
	}
	if resp.StatusCode != http.StatusOK {
		return "", fmt.Errorf("%s: %w: %s", url, errStatus, resp.Status)
	}
	return d.Digest(), nil
}

// honestly runs an honest client during attack, with at least this many pulls.
func (s *siege) honestly(pulls int, attack func()) seen {
	s.t.Helper()
	config, err := json.Marshal(honest{Probe: s.Admin + "/healthz", Pulls: pulls, Wants: map[string]digest.Digest{
		s.URL + "/v2/library/kept/manifests/1":                                s.image.Index.Digest,
		s.URL + "/v2/library/kept/blobs/" + s.image.Layers[0].Digest.String(): s.image.Layers[0].Digest,
	}})
	if err != nil {
		s.t.Fatal(err)
	}
	command := []string{os.Args[0]}
	if s.scheduled {
		command = append([]string{"chrt", "--rr", "1"}, command...)
	}
	client := exec.CommandContext(s.t.Context(), command[0], command[1:]...)
	client.Env = append(os.Environ(), honestEnv+"="+string(config))
	client.Stderr = os.Stderr
	in, err := client.StdinPipe()
	if err != nil {
		s.t.Fatal(err)
	}
	out, err := client.StdoutPipe()
	if err != nil {
		s.t.Fatal(err)
	}
	if err := client.Start(); err != nil {
		s.t.Fatal(err)
	}
	end := sync.OnceFunc(func() { _ = in.Close() })
	defer end() // if attack stops the test
	attack()
	end()
	var found seen
	derr, werr := json.NewDecoder(out).Decode(&found), client.Wait()
	if derr != nil || werr != nil || len(found.Pulls) == 0 {
		s.t.Fatalf("the honest client: %v, %v", derr, werr)
	}
	for _, e := range found.Errors {
		s.t.Error(e)
	}
	return found
}

func percentile(took []time.Duration, percent int) time.Duration {
	sorted := slices.Sorted(slices.Values(took))
	return sorted[(len(sorted)-1)*percent/100].Round(10 * time.Microsecond)
}
