package monitoring

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cachalot-registry/cachalot/upstream/upstreamtest"
)

// minute is the time that stands for a minute of the rules and the dashboard.
const minute = 500 * time.Millisecond

// program finds a program of Debian's package prometheus, or skips the test.
func program(t *testing.T, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Skipf("no %s: apt-get install --no-install-recommends prometheus", name)
	}
	return path
}

// quickly scales the time in rules and queries: in ranges, in "for", and in thresholds,
// which are minutes times 60.
func quickly(text string) string {
	units := map[string]int{"m": 1, "h": 60, "d": 24 * 60}
	span := func(n, unit string) string {
		v, err := strconv.Atoi(n)
		if err != nil {
			panic(err) // the pattern has digits only
		}
		return fmt.Sprintf("%dms", (time.Duration(v*units[unit]) * minute).Milliseconds())
	}
	ranges := regexp.MustCompile(`\[(\d+)([mhd])\]`)
	text = ranges.ReplaceAllStringFunc(text, func(s string) string {
		m := ranges.FindStringSubmatch(s)
		return "[" + span(m[1], m[2]) + "]"
	})
	waits := regexp.MustCompile(`(?m)^(\s+for: )(\d+)([mhd])$`)
	text = waits.ReplaceAllStringFunc(text, func(s string) string {
		m := waits.FindStringSubmatch(s)
		return m[1] + span(m[2], m[3])
	})
	return regexp.MustCompile(`(\d+) \* 60\b`).ReplaceAllString(text, fmt.Sprintf("$1 * %v", minute.Seconds()))
}

// prometheus is a Prometheus that scrapes a mirror and a node.
type prometheus struct {
	url string
	log string
}

func startPrometheus(t *testing.T, mirror, node, rules string) *prometheus {
	t.Helper()
	path := program(t, "prometheus")
	dir := t.TempDir()
	for name, text := range map[string]string{
		"rules.yml": rules,
		"prometheus.yml": fmt.Sprintf("global: {scrape_interval: %[1]s, scrape_timeout: %[1]s, evaluation_interval: %[1]s}\n"+
			"rule_files: [rules.yml]\nscrape_configs:\n  - job_name: cachalot\n    static_configs: [{targets: ['%[2]s']}]\n"+
			"  - job_name: cachalot-node\n    static_configs: [{targets: ['%[3]s']}]\n", minute, mirror, node),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	p := &prometheus{url: "http://" + upstreamtest.PortFor(t), log: filepath.Join(dir, "log")}
	out, err := os.Create(p.log)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = out.Close() }()
	cmd := exec.Command(path, "--config.file="+filepath.Join(dir, "prometheus.yml"), "--storage.tsdb.path="+filepath.Join(dir, "data"), //nolint:noctx // killed by the test
		"--web.listen-address="+strings.TrimPrefix(p.url, "http://"), "--log.level=warn")
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // it may have ended
		_ = cmd.Wait()
	})
	await(t, 30*time.Second, "Prometheus is ready", func() bool {
		resp, err := http.Get(p.url + "/-/ready") //nolint:noctx // loopback
		if err != nil {
			return false
		}
		return resp.Body.Close() == nil && resp.StatusCode == http.StatusOK
	}, func() string { b, _ := os.ReadFile(p.log); return string(b) })
	return p
}

// await waits until ok returns true. Else it fails the test with explain's text.
func await(t *testing.T, patience time.Duration, what string, ok func() bool, explain func() string) {
	t.Helper()
	limit := time.After(patience)
	for tick := time.NewTicker(minute / 2); !ok(); {
		select {
		case <-tick.C:
		case <-limit:
			t.Fatalf("not in %s: %s\n%s", patience, what, explain())
		}
	}
}

// sample is one value of a response.
type sample struct {
	labels map[string]string
	value  float64
}

// query returns the current values of an expression.
func (p *prometheus) query(t *testing.T, expr string) []sample {
	t.Helper()
	var data struct {
		ResultType string          `json:"resultType"`
		Result     json.RawMessage `json:"result"`
	}
	p.get(t, "/api/v1/query?"+url.Values{"query": {expr}}.Encode(), &data)
	if data.ResultType != "vector" {
		t.Fatalf("%s is a %s", expr, data.ResultType)
	}
	var result []struct {
		Metric map[string]string `json:"metric"`
		Value  [2]any            `json:"value"`
	}
	if err := json.Unmarshal(data.Result, &result); err != nil {
		t.Fatal(err)
	}
	var all []sample
	for _, r := range result {
		v, err := strconv.ParseFloat(fmt.Sprint(r.Value[1]), 64)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, sample{r.Metric, v})
	}
	return all
}

// get decodes the data of a response of Prometheus' API.
func (p *prometheus) get(t *testing.T, path string, data any) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, p.url+path, http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	answer := struct {
		Status, Error string
		Data          any
	}{Data: data}
	if err := json.Unmarshal(body, &answer); err != nil || answer.Status != "success" {
		t.Fatalf("%s: %v, %s", path, err, body)
	}
}

// firing returns the names of the alerts that fire now, and checks their texts.
func (p *prometheus) firing(t *testing.T) map[string]bool {
	t.Helper()
	var now struct {
		Alerts []struct {
			Labels, Annotations map[string]string
			State               string
		}
	}
	p.get(t, "/api/v1/alerts", &now)
	names := map[string]bool{}
	for _, a := range now.Alerts {
		if a.State != "firing" {
			continue
		}
		names[a.Labels["alertname"]] = true
		for key, text := range a.Annotations {
			if strings.Contains(text, "<") || strings.Contains(text, "  ") {
				t.Errorf("%s: the %s is %q", a.Labels["alertname"], key, text)
			}
		}
	}
	return names
}
