//go:build e2e

package e2e

import (
	"bufio"
	"cmp"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// mirror is a cachalot process and its cache. The cache survives a restart.
type mirror struct {
	*process
	dir       string
	upstreams map[string]string // YAML by registry name
	listen    string            // host:port; the first start finds a free one
	admin     string
	timeouts  string // YAML: upstream timeouts; "": the defaults
	// negativeFor is negative_for; 0: the default.
	negativeFor time.Duration
	front       string // URL of a server in front of it, or ""
	tls         string // YAML: its certificate; "": plain HTTP
	ca          string // file with the certificate's CA

	// Further settings of the clients.
	login      string            // folder of a config.json with credentials, or ""
	fallback   string            // host:port of the clients' fallback; "": the registry itself
	registries map[string]string // the mirrored registries, and their names in the mirror; nil: those of the configuration
}

// newMirror starts a cachalot with an empty cache and this fresh_for.
func newMirror(t *testing.T, freshFor time.Duration, upstreams map[string]string) *mirror {
	t.Helper()
	m := &mirror{upstreams: upstreams}
	m.open(t, freshFor)
	return m
}

// open starts the mirror for the first time.
func (m *mirror) open(t *testing.T, freshFor time.Duration) {
	t.Helper()
	m.dir, m.listen, m.admin = t.TempDir(), "127.0.0.1:0", "127.0.0.1:0"
	m.configure(t, freshFor)
	m.start(t)
	m.configure(t, freshFor) // with the ports of the first start
}

func (m *mirror) file() string { return filepath.Join(m.dir, "config.yml") }

// url is the mirror's URL for clients. host is the same without the scheme.
func (m *mirror) url() string { return cmp.Or(m.front, m.scheme()+m.listen) }

func (m *mirror) scheme() string {
	if m.tls != "" {
		return "https://"
	}
	return "http://"
}

func (m *mirror) host() string {
	_, host, _ := strings.Cut(m.url(), "://")
	return host
}

// below is an image's name for clients without mirror support: it starts with the mirror's host.
func (m *mirror) below(image string) string { return m.host() + "/" + image }

// configuration is the output of "cachalot client" for one file.
func (m *mirror) configuration(t *testing.T, client, path string, more ...string) []byte {
	t.Helper()
	args := []string{installed(t, "cachalot"), "client", client, "--config", m.file(), "--file", path, "--mirror", m.url()}
	if m.ca != "" {
		args = append(args, "--ca", m.ca)
	}
	return []byte(must(t, nil, append(args, more...)...) + "\n")
}

// eachConfiguration is configuration for a client with an entry per registry.
func (m *mirror) eachConfiguration(t *testing.T, client, path string) string {
	t.Helper()
	var list []string
	rename := []string{}
	for _, name := range slices.Sorted(maps.Keys(m.registries)) {
		list = append(list, "--registry", name)
		rename = append(rename, strconv.Quote(m.below(name)), strconv.Quote(m.below(m.registries[name])))
	}
	return strings.NewReplacer(rename...).Replace(string(m.configuration(t, client, path, list...)))
}

// environment has the variables that give clients their credentials.
func (m *mirror) environment() []string {
	if m.login == "" {
		return nil
	}
	return []string{"DOCKER_CONFIG=" + m.login, "REGISTRY_AUTH_FILE=" + filepath.Join(m.login, "config.json")}
}

func (m *mirror) configure(t *testing.T, freshFor time.Duration) {
	t.Helper()
	var b strings.Builder
	fmt.Fprintf(&b, "listen: %s\nadmin: {listen: %s}\nlog: {level: debug}\n", m.listen, m.admin)
	fmt.Fprintf(&b, "tls: {%s}\n", m.tls)
	fmt.Fprintf(&b, "storage: {path: %s, min_free: 0}\n", filepath.Join(m.dir, "cache"))
	fmt.Fprintf(&b, "tags: {fresh_for: %s, negative_for: %s}\n", freshFor, cmp.Or(m.negativeFor, 10*time.Second))
	fmt.Fprintf(&b, "timeouts: {%s}\nupstreams:\n", m.timeouts)
	for name, settings := range m.upstreams {
		fmt.Fprintf(&b, "  %s: %s\n", name, settings)
	}
	if err := os.WriteFile(m.file(), []byte(b.String()), 0o600); err != nil {
		t.Fatal(err)
	}
}

// start starts the process, after the first time at the same addresses.
func (m *mirror) start(t *testing.T) {
	t.Helper()
	m.process = start(t, "cachalot", nil, installed(t, "cachalot"), "serve", "--config", m.file())
	m.await(t, m.said)
}

// await reads the addresses from the log, and waits until the process is ready.
func (m *mirror) await(t *testing.T, log func() string) {
	t.Helper()
	line := regexp.MustCompile(`registry_mirror=` + m.scheme() + `(\S+) admin=http://(\S+)`)
	m.until(t, "ready", func() error {
		addresses := line.FindStringSubmatch(log())
		if addresses == nil {
			return fmt.Errorf("no %q in its log", line)
		}
		m.listen, m.admin = addresses[1], addresses[2]
		if status, body := get(t, "http://"+m.admin+"/readyz"); status != http.StatusOK {
			return fmt.Errorf("status %d: %s", status, body)
		}
		return nil
	})
}

// reload reloads the running process with another fresh_for.
func (m *mirror) reload(t *testing.T, freshFor time.Duration) {
	t.Helper()
	const line = `msg="configuration reloaded"`
	before := strings.Count(m.said(), line)
	m.configure(t, freshFor)
	m.signal(syscall.SIGHUP)
	m.until(t, "reloaded", func() error {
		if strings.Count(m.said(), line) == before {
			return errors.New("not in its log")
		}
		return nil
	})
}

// figures are the samples of /metrics, by name and labels as written there.
type figures map[string]float64

// since returns the differences.
func (f figures) since(before figures) figures {
	d := figures{}
	for name, v := range f {
		d[name] = v - before[name]
	}
	return d
}

// metrics reads the process' metrics.
func (m *mirror) metrics(t *testing.T) figures {
	t.Helper()
	status, body := get(t, "http://"+m.admin+"/metrics")
	if status != http.StatusOK {
		t.Fatalf("metrics: status %d", status)
	}
	f := figures{}
	for lines := bufio.NewScanner(strings.NewReader(body)); lines.Scan(); {
		name, value, ok := strings.Cut(lines.Text(), "} ")
		if !ok || strings.HasPrefix(name, "#") {
			continue
		}
		v, err := strconv.ParseFloat(value, 64)
		if err != nil {
			t.Fatalf("metrics: %q: %v", lines.Text(), err)
		}
		f[name+"}"] = v
	}
	return f
}

// sum adds up a metric's samples, by the value of one label.
func (f figures) sum(metric, label string) map[string]int64 {
	sums := map[string]int64{}
	for name, v := range f {
		labels, ok := strings.CutPrefix(name, metric+"{")
		_, rest, has := strings.Cut(labels, label+`="`)
		if value, _, _ := strings.Cut(rest, `"`); ok && has && v != 0 {
			sums[value] += int64(v)
		}
	}
	return sums
}

func get(t *testing.T, url string) (status int, body string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, err.Error()
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return 0, err.Error()
	}
	return resp.StatusCode, string(b)
}
