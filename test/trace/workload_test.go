package trace

import (
	"math"
	"slices"
	"testing"
)

// TestSkew compares the generated trace with published figures of registries.
func TestSkew(t *testing.T) {
	t.Parallel()
	for seed := range uint64(3) {
		w := DefaultWorkload(seed)
		w.Days = 10
		sizes := make(map[uint64]int64)
		days := make(map[uint64][2]int64) // first and last
		var gets, large, bytes, largeBytes float64
		var before int64
		for r := range w.Requests() {
			if size, ok := sizes[r.Key]; ok && size != r.Size {
				t.Fatalf("object %d has %d bytes, then %d", r.Key, size, r.Size)
			}
			if r.Time < before {
				t.Fatalf("time goes from %d to %d", before, r.Time)
			}
			before, sizes[r.Key] = r.Time, r.Size
			if r.Manifest {
				d, ok := days[r.Key]
				if !ok {
					d[0] = r.Time / day
				}
				d[1] = r.Time / day
				days[r.Key] = d
				continue
			}
			gets++
			bytes += float64(r.Size)
			if r.Size > 64*mebibyte {
				large++
				largeBytes += float64(r.Size)
			}
		}
		within := func(what string, got, want, by float64) {
			t.Helper()
			if math.Abs(got-want) > by {
				t.Errorf("seed %d: %s is %.3f, want %.3f within %.3f", seed, what, got, want, by)
			}
		}
		within("large blobs' share of GETs", large/gets, 0.06, 0.01)
		within("large blobs' share of bytes", largeBytes/bytes, 0.65, 0.05)

		var layers, small, medium float64
		for layer := range layersOf(w) {
			layers++
			if layer.size < megabyte {
				small++
			}
			if layer.size < 10*megabyte {
				medium++
			}
		}
		within("share of layers below 1 MB", small/layers, 0.65, 0.02)
		within("share of layers below 10 MB", medium/layers, 0.80, 0.02)

		var fresh float64
		for _, d := range days {
			if d[0] == int64(w.Days)-1 {
				fresh++
			}
		}
		if fresh < float64(w.NewTags)/4 {
			t.Errorf("seed %d: %.0f manifests were new on the last day, of %d new tags", seed, fresh, w.NewTags)
		}
	}
}

// layersOf returns every layer of the workload, requested or not.
func layersOf(w Workload) map[blob]bool {
	g, layers := newGenerator(w), map[blob]bool{}
	note := func() {
		for _, r := range g.repositories {
			for _, l := range r.tags[len(r.tags)-1].layers {
				layers[l] = true
			}
		}
	}
	note()
	for d := range w.Days {
		g.day(int64(d)*day, false, func(Request) bool { return true })
		note()
	}
	return layers
}

// TestPopularity: the popularity of images follows Zipf's law.
func TestPopularity(t *testing.T) {
	t.Parallel()
	w := DefaultWorkload(1)
	w.Days, w.Jobs, w.Burst, w.Repositories, w.NewTags, w.NewBases = 1, 200000, 1, 100, 0, 0
	pulls := make(map[uint64]float64)
	for r := range w.Requests() {
		if r.Manifest {
			pulls[r.Key]++
		}
	}
	var counts []float64
	for _, n := range pulls {
		counts = append(counts, n)
	}
	slices.Sort(counts)
	slices.Reverse(counts)
	for _, rank := range []int{2, 10, 50} {
		want := math.Pow(float64(rank), w.Popularity)
		if got := counts[0] / counts[rank-1]; math.Abs(got/want-1) > 0.1 {
			t.Errorf("the first of %d images is pulled %.1f times as often as number %d, want %.1f", len(counts), got, rank, want)
		}
	}
}

func TestWorkloadRepeats(t *testing.T) {
	t.Parallel()
	w := DefaultWorkload(7)
	w.Days, w.Jobs, w.Repositories, w.Scan = 2, 50, 100, 2
	a, b := slices.Collect(w.Requests()), slices.Collect(w.Requests())
	if !slices.Equal(a, b) {
		t.Error("the same seed gave another trace")
	}
	w.Seed++
	if slices.Equal(a, slices.Collect(w.Requests())) {
		t.Error("another seed gave the same trace")
	}
	n := 0
	for range w.Requests() {
		if n++; n == 10 {
			break
		}
	}
}

// TestScan: on the day of the scan, every existing tag is pulled.
func TestScan(t *testing.T) {
	t.Parallel()
	w := DefaultWorkload(1)
	w.Days, w.Jobs, w.Repositories, w.Scan = 2, 10, 500, 2
	seen := make([]map[uint64]bool, w.Days)
	for r := range w.Requests() {
		d := r.Time / day
		if seen[d] == nil {
			seen[d] = make(map[uint64]bool)
		}
		if r.Manifest {
			seen[d][r.Key] = true
		}
	}
	if len(seen[0]) > 100 || len(seen[1]) < w.Repositories {
		t.Errorf("%d images were pulled on the first day, and %d of %d on the scan's", len(seen[0]), len(seen[1]), w.Repositories)
	}
}

func TestValidate(t *testing.T) {
	t.Parallel()
	if err := DefaultWorkload(1).Validate(); err != nil {
		t.Error(err)
	}
	for name, change := range map[string]func(*Workload){
		"days":       func(w *Workload) { w.Days = 0 },
		"popularity": func(w *Workload) { w.Popularity = math.NaN() },
		"burst":      func(w *Workload) { w.Burst = 0.5 },
		"cold":       func(w *Workload) { w.Cold = 2 },
		"scan":       func(w *Workload) { w.Scan = w.Days + 1 },
	} {
		w := DefaultWorkload(1)
		change(&w)
		if w.Validate() == nil {
			t.Errorf("%s: a bad workload is valid", name)
		}
	}
}
