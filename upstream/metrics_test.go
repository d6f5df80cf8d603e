package upstream

import (
	"net/http"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/cachalot-registry/cachalot/upstream/upstreamtest"
)

func fetched(t *testing.T, r *Registry, kind Kind) int64 {
	t.Helper()
	return int64(testutil.ToFloat64(r.metrics.fetched.WithLabelValues(r.Name(), string(kind))))
}

func TestMetrics(t *testing.T) {
	t.Parallel()
	up, img := image(t, upstreamtest.Options{Auth: upstreamtest.Bearer, CDN: true, Header: http.Header{
		"Ratelimit-Limit": {"100;w=21600"}, "Ratelimit-Remaining": {"76;w=21600"},
	}})
	r := asking(t, up)
	head(t, r, repo)
	read(t, r, KindManifest, img.Index.Digest, 0)
	for _, b := range img.Blobs() {
		read(t, r, KindBlob, b.Digest, 0)
	}
	if _, err := r.TagPage(t.Context(), repo, ""); err != nil {
		t.Fatal(err)
	}
	if _, _, err := r.Referrers(t.Context(), repo, img.Index.Digest); err != nil {
		t.Fatal(err)
	}
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(r.metrics)
	if n := testutil.ToFloat64(r.metrics.limit); n != 100 {
		t.Errorf("limit %v", n)
	}
	if n := testutil.ToFloat64(r.metrics.remaining); n != 76 {
		t.Errorf("remaining %v", n)
	}
	for kind, want := range map[Kind]int64{
		KindManifest: img.Index.Size, KindBlob: img.Config.Size + img.Layers[0].Size,
		KindTags:      up.Select(upstreamtest.Match{Op: upstreamtest.Tags})[0].Sent,
		KindReferrers: up.Select(upstreamtest.Match{Op: upstreamtest.Referrers})[0].Sent,
	} {
		if got := fetched(t, r, kind); got != want || want == 0 {
			t.Errorf("%s: %d bytes fetched, want %d", kind, got, want)
		}
	}
	for labels, want := range map[[2]string]float64{
		{"ping", "401"}: 1, {"head_manifest", "200"}: 1, {"token", "200"}: 1, {"get_manifest", "200"}: 1,
		{"get_blob", "307"}: 2, {"get_blob", "200"}: 2, {"tags", "200"}: 1, {"referrers", "200"}: 1,
	} {
		if got := testutil.ToFloat64(r.metrics.requests.WithLabelValues("docker.io", labels[0], labels[1])); got != want {
			t.Errorf("%v: %v requests, want %v", labels, got, want)
		}
	}
	if n := testutil.CollectAndCount(r.metrics.requests); n != 8 {
		t.Errorf("%d series of requests, want 8", n)
	}
	problems, err := testutil.GatherAndLint(registry)
	if err != nil || len(problems) > 0 {
		t.Errorf("%v, %v", problems, err)
	}
}

func TestCodeLabel(t *testing.T) {
	t.Parallel()
	for status, want := range map[int]string{200: "200", 206: "206", 299: "2xx", 404: "404", 418: "4xx", 504: "504", 999: "9xx"} {
		if got := codeLabel(status); got != want {
			t.Errorf("%d: %q, want %q", status, got, want)
		}
	}
}
