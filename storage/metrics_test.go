package storage

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/cachalot-registry/cachalot/storage/download"
	"github.com/cachalot-registry/cachalot/storage/index"
	"github.com/cachalot-registry/cachalot/upstream/upstreamtest"
)

// TestMetricsOfSlots: a fill that waits for a slot is counted until it gets one or gives up.
func TestMetricsOfSlots(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := openStore(t, t.TempDir(), func(c *Config) { c.MaxFills = 1 })
		want := func(running, waiting float64) {
			t.Helper()
			synctest.Wait()
			if r, w := testutil.ToFloat64(s.metrics.fills), testutil.ToFloat64(s.metrics.fillsWaiting); r != running || w != waiting {
				t.Errorf("%v fills in progress and %v waiting, want %v and %v", r, w, running, waiting)
			}
		}
		if n := testutil.ToFloat64(s.metrics.fillsLimit); n != 1 {
			t.Errorf("fills_limit is %v", n)
		}
		first := &origin{content: upstreamtest.Random(701, 1000), hold: make(chan struct{})}
		b, err := s.Get(t.Context(), scope(), first.digest(), first.source)
		if err != nil {
			t.Fatal(err)
		}
		defer b.Close()
		want(1, 0)
		ctx, leave := context.WithCancel(t.Context())
		for i, ctx := range []context.Context{t.Context(), ctx} {
			o := &origin{content: upstreamtest.Random(uint64(702+i), 1000)}
			go func() {
				if b, err := s.Get(ctx, scope(), o.digest(), o.source); err == nil {
					b.Close()
				}
			}()
		}
		want(1, 2)
		leave()
		want(1, 1)
		close(first.hold)
		want(0, 0)
	})
}

// TestMetricsOfSpace: free space is read at each scrape. If that fails, the value is NaN.
func TestMetricsOfSpace(t *testing.T) {
	t.Parallel()
	m := NewMetrics()
	if n := gathered(t, m, "storage_free_bytes"); !math.IsNaN(n) {
		t.Errorf("%v bytes free before there is a disk", n)
	}
	s := openStore(t, t.TempDir(), func(c *Config) { c.MinFree = Size{Bytes: 100 << 20} })
	_, total, err := s.disk.space()
	if err != nil {
		t.Fatal(err)
	}
	if n := gathered(t, s.metrics, "storage_free_bytes"); n <= 0 || n > float64(total) {
		t.Errorf("%v bytes free of %d", n, total)
	}
	if n := testutil.ToFloat64(s.metrics.minFree); n != 100<<20 {
		t.Errorf("storage_min_free_bytes is %v", n)
	}
	least := openStore(t, t.TempDir(), func(c *Config) { c.MinFree = Size{} })
	if n := testutil.ToFloat64(least.metrics.minFree); n != index.Floor {
		t.Errorf("storage_min_free_bytes is %v, and the index takes %d in any case", n, index.Floor)
	}
}

// TestMetricsOfFailures: a download that the upstream refuses, as with 404, is not a failure.
func TestMetricsOfFailures(t *testing.T) {
	t.Parallel()
	s := openStore(t, t.TempDir())
	failures := func() string {
		var b strings.Builder
		for _, reason := range []string{reasonUpstream, reasonDigest, reasonDisk, reasonClosed} {
			fmt.Fprint(&b, testutil.ToFloat64(s.metrics.failures.WithLabelValues(reason)), " ")
		}
		return b.String()
	}
	o := &origin{content: upstreamtest.Random(711, 1000)}
	for _, step := range []struct {
		err  error
		want string
	}{
		{fmt.Errorf("%w: not found", download.ErrRefused), "0 0 0 0 "},
		{errors.New("no answer"), "1 0 0 0 "},
	} {
		_, err := s.Get(t.Context(), scope(), o.digest(), func(context.Context, download.Span) (*download.Part, error) { return nil, step.err })
		if !errors.Is(err, step.err) {
			t.Errorf("got %v", err)
		}
		settle(t, s)
		if got := failures(); got != step.want {
			t.Errorf("after %q the failures are %s, want %s", step.err, got, step.want)
		}
	}
}

// gathered is the value of a metric.
func gathered(t *testing.T, m *Metrics, name string) float64 {
	t.Helper()
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(m)
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == name {
			return f.GetMetric()[0].GetGauge().GetValue() + f.GetMetric()[0].GetCounter().GetValue()
		}
	}
	t.Fatalf("no metric %s", name)
	return 0
}

func TestMetricsLint(t *testing.T) {
	t.Parallel()
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(NewMetrics())
	if problems, err := testutil.GatherAndLint(registry); err != nil || len(problems) > 0 {
		t.Errorf("%v, %v", problems, err)
	}
}
