package upstream

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/cachalot-registry/cachalot/upstream/upstreamtest"
)

// TestUpMetric: upstream_up follows the breaker of a configured host, and has no other series.
func TestUpMetric(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		status := http.StatusInternalServerError
		r := served(t, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(status) })
		ask := func() {
			// The metrics have the result.
			_, _ = r.Head(t.Context(), KindManifest, repo, "latest")
		}
		want := func(up float64) {
			t.Helper()
			if got := testutil.ToFloat64(r.metrics.up.WithLabelValues("r.test", "r.test")); got != up {
				t.Errorf("upstream_up is %v, want %v", got, up)
			}
			if n := testutil.CollectAndCount(r.metrics.up); n != 1 {
				t.Errorf("%d series, want one", n)
			}
		}
		ask() // three tries
		want(1)
		ask()
		want(0)
		time.Sleep(breakerPause + time.Millisecond)
		want(0) // no request has found out yet
		status = http.StatusNotFound
		ask()
		want(1)
		if got := testutil.ToFloat64(r.metrics.lastSuccess.WithLabelValues("r.test")); got != float64(time.Now().UnixNano())/1e9 {
			t.Errorf("last success at %v, not now", got)
		}
	})
}

// TestUnlistedMetrics: a registry that a client names has no series.
func TestUnlistedMetrics(t *testing.T) {
	t.Parallel()
	r := dialing(t, Config{Name: "evil.test", URLs: []string{"https://evil.test"}, Unlisted: true})
	r.endpoints[0].count(succeeded)
	if n := testutil.CollectAndCount(r.metrics.up); n != 0 {
		t.Errorf("%d series of upstream_up", n)
	}
}

// TestCanceledMetric: a request that reached the upstream is counted, even if its caller has
// left.
func TestCanceledMetric(t *testing.T) {
	t.Parallel()
	up, img := image(t, upstreamtest.Options{})
	arrived := make(chan struct{})
	up.Fault(upstreamtest.Match{Op: upstreamtest.GetBlob}, upstreamtest.Arrived(arrived), upstreamtest.BlackHole())
	r := asking(t, up)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() {
		_, err := r.Open(ctx, KindBlob, repo, img.Config.Digest, Span{})
		ended <- err
	}()
	<-arrived
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if n := testutil.ToFloat64(r.metrics.requests.WithLabelValues("docker.io", "get_blob", "canceled")); n != 1 {
		t.Errorf("counted %v times", n)
	}
}

// TestCredentialMetric: a credential that cannot be read is counted. One that works again is
// not.
func TestCredentialMetric(t *testing.T) {
	t.Parallel()
	up, _ := image(t, upstreamtest.Options{Auth: upstreamtest.Basic, Username: "me", Password: "right"})
	file := filepath.Join(t.TempDir(), "password")
	write(t, file, "right")
	m := NewMetrics()
	r, err := New(defaults(Config{URLs: []string{up.URL}, Accounts: []Account{{Username: "me", PasswordFile: file}}}), m, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Close)
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Head(t.Context(), KindManifest, repo, "latest"); err == nil || !strings.Contains(err.Error(), "password") {
		t.Error(err)
	}
	failures := func() float64 { return testutil.ToFloat64(m.credentials.WithLabelValues("docker.io")) }
	before := failures() // one for each try
	if before == 0 {
		t.Error("no failure counted")
	}
	write(t, file, "right")
	if _, err := r.Head(t.Context(), KindManifest, repo, "latest"); err != nil {
		t.Error(err)
	}
	if n := failures(); n != before {
		t.Errorf("%v failures, %v before", n, before)
	}
}
