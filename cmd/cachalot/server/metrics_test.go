package server

import (
	"bytes"
	"io"
	"maps"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"

	ut "github.com/cachalot-registry/cachalot/upstream/upstreamtest"
)

// scrape reads the metrics in a format.
func (r *running) scrape(t *testing.T, accept string) (contentType string, body io.Reader) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, r.admin+"/metrics", http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Accept", accept)
	resp, err := r.client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { resp.Body.Close() })
	return resp.Header.Get("Content-Type"), resp.Body
}

// TestMetricsFormats: the same metrics as text, OpenMetrics, and protocol buffers with
// native and classic histograms.
func TestMetricsFormats(t *testing.T) {
	t.Parallel()
	up := ut.New(t, ut.Options{Auth: ut.Bearer, Header: http.Header{"Ratelimit-Limit": {"100;w=21600"}, "Ratelimit-Remaining": {"76;w=21600"}}})
	up.AddImage("library/app", "latest", ut.NewImage(1, 1000))
	r := start(t, upstreams(up.URL))
	r.read(t, r.url+"/v2/library/app/manifests/latest")
	r.read(t, r.url+"/v2/") // on the same connection, so the previous request is counted

	contentType, body := r.scrape(t, "text/plain;version=0.0.4")
	plain, err := io.ReadAll(body)
	if err != nil || !strings.HasPrefix(contentType, "text/plain") {
		t.Errorf("%s, %v", contentType, err)
	}
	named := regexp.MustCompile(`(?m)^# TYPE (cachalot_\w+) `)
	var names []string
	for _, m := range named.FindAllSubmatch(plain, -1) {
		names = append(names, string(m[1]))
	}
	// The metrics of the design, and more.
	for _, want := range []string{
		"requests_total", "served_bytes_total", "fetched_bytes_total", "upstream_requests_total", "upstream_request_seconds",
		"upstream_ratelimit_limit", "upstream_ratelimit_remaining", "first_byte_seconds", "fills_in_progress", "fill_resumes_total",
		"fill_failures_total", "storage_bytes", "storage_limit_bytes", "storage_blobs", "evicted_bytes_total", "eviction_age_seconds",
		"upstream_up", "upstream_last_success_timestamp_seconds", "storage_free_bytes", "storage_min_free_bytes",
		"fills_limit", "fills_waiting", "connections", "connections_limit", "requests_in_flight",
	} {
		if !slices.Contains(names, "cachalot_"+want) {
			t.Errorf("there is no cachalot_%s", want)
		}
	}
	// Labels have few values: none is a repository, a tag or a client.
	labels := []string{"upstream", "kind", "result", "op", "code", "reason", "host", "le", "version", "revision", "go_version"}
	for _, m := range regexp.MustCompile(`(?m)^cachalot_\w+\{(.*)\}`).FindAllSubmatch(plain, -1) {
		for _, l := range regexp.MustCompile(`(\w+)="`).FindAllSubmatch(m[1], -1) {
			if !slices.Contains(labels, string(l[1])) {
				t.Errorf("label %s in %s", l[1], m[0])
			}
		}
	}
	if problems, err := promlint.New(bytes.NewReader(plain)).Lint(); err != nil || len(problems) > 0 {
		t.Error(problems, err)
	}

	contentType, body = r.scrape(t, "application/openmetrics-text;version=1.0.0")
	open, err := io.ReadAll(body)
	if err != nil || !strings.HasPrefix(contentType, "application/openmetrics-text; version=1.0.0") || !strings.HasSuffix(string(open), "\n# EOF\n") {
		t.Errorf("%s, %v, ending in %q", contentType, err, open[max(0, len(open)-20):])
	}
	for _, name := range names { // HELP has a counter's name without _total
		if !strings.Contains("\n"+string(open), "\n# HELP "+strings.TrimSuffix(name, "_total")+" ") {
			t.Errorf("OpenMetrics has no help for %s", name)
		}
	}

	contentType, body = r.scrape(t, "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited")
	decoder := expfmt.NewDecoder(body, expfmt.ResponseFormat(http.Header{"Content-Type": {contentType}}))
	native := map[string]bool{}
	for {
		var family dto.MetricFamily
		if err := decoder.Decode(&family); err != nil {
			if err != io.EOF { //nolint:errorlint // as the decoder has it
				t.Error(err)
			}
			break
		}
		if family.GetType() != dto.MetricType_HISTOGRAM || !strings.HasPrefix(family.GetName(), "cachalot_") {
			continue
		}
		h := family.GetMetric()[0].GetHistogram()
		native[family.GetName()] = h.Schema != nil && len(h.GetBucket()) > 0
	}
	// A native histogram costs each request 110 ns, too much for first_byte_seconds.
	want := map[string]bool{"cachalot_eviction_age_seconds": true, "cachalot_upstream_request_seconds": true, "cachalot_first_byte_seconds": false}
	if !maps.Equal(native, want) {
		t.Errorf("native beside classic: %v, want %v", native, want)
	}
}
