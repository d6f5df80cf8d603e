package trace

import (
	"fmt"
	"iter"
	"math"
	"math/rand/v2"
	"slices"
	"sort"
)

const (
	megabyte = 1000 * 1000
	mebibyte = 1 << 20
	day      = 24 * 60 * 60
)

// Workload describes pulls through a mirror. The same Workload gives the same Requests.
//
// Layer sizes are those of the registries in "Improving Docker Registry Design based on
// Production Workload Analysis" (Anwar and others, FAST 2018): 65 % below 1 MB, 80 % below
// 10 MB; those over 64 MiB are 6 % of the requested blobs, and 65 % of their bytes.
type Workload struct {
	Seed         uint64
	Days         int
	Repositories int
	Bases        int     // base images of the repositories
	Popularity   float64 // of repositories and bases: Zipf's exponent
	Jobs         int     // per day: one image, pulled by Burst clients on average
	Burst        float64
	NewTags      int     // per day; popular repositories have more
	NewBases     float64 // chance per day that a base is rebuilt
	Cold         float64 // share of clients without stored layers; others have the previous tag
	Old          float64 // share of jobs that pull an older tag
	Scan         int     // on this day, from 1, a client pulls every tag; 0: never
}

// DefaultWorkload is the workload of docs/eviction.md.
func DefaultWorkload(seed uint64) Workload {
	return Workload{
		Seed: seed, Days: 30, Repositories: 3000, Bases: 60, Popularity: 0.9,
		Jobs: 1000, Burst: 3, NewTags: 150, NewBases: 1. / 14, Cold: 0.7, Old: 0.2,
	}
}

// Validate returns an error for values out of range.
func (w Workload) Validate() error {
	share := func(v float64) bool { return v >= 0 && v <= 1 }
	switch {
	case w.Days < 1 || w.Repositories < 1 || w.Bases < 1 || w.Jobs < 1 || w.NewTags < 0:
		return fmt.Errorf("workload: days, repositories, bases and jobs must be at least 1, and new tags at least 0")
	case !(w.Popularity >= 0) || !(w.Burst >= 1):
		return fmt.Errorf("workload: popularity %v must be at least 0, and burst %v at least 1", w.Popularity, w.Burst)
	case !share(w.NewBases) || !share(w.Cold) || !share(w.Old):
		return fmt.Errorf("workload: shares must be from 0 to 1")
	case w.Scan < 0 || w.Scan > w.Days:
		return fmt.Errorf("workload: no day %d in %d days", w.Scan, w.Days)
	}
	return nil
}

// tagsKept is the number of previous tags that a job may pull.
const tagsKept = 10

type (
	blob struct {
		key  uint64
		size int64
	}
	tag struct {
		manifest, config blob
		layers           []blob
	}
	repository struct {
		base   int
		layers []blob // the layers of its newest tag
		tags   []tag  // newest last
	}
	generator struct {
		Workload
		*rand.Rand
		last         uint64  // key
		quantile     float64 // of the last layer size
		bases        [][]blob
		repositories []repository
		popular      []float64 // cumulated chance of each repository
		popularBases []float64
	}
)

// Requests yields the requests to the mirror. The workload must be valid.
func (w Workload) Requests() iter.Seq[Request] {
	return func(yield func(Request) bool) {
		g := newGenerator(w)
		for d := range w.Days {
			if !g.day(int64(d)*day, d+1 == w.Scan, yield) {
				return
			}
		}
	}
}

func newGenerator(w Workload) *generator {
	g := &generator{
		Workload: w, Rand: rand.New(rand.NewPCG(w.Seed, 0)),
		popular: zipf(w.Repositories, w.Popularity), popularBases: zipf(w.Bases, w.Popularity),
	}
	g.quantile = g.Float64()
	for range w.Bases {
		g.bases = append(g.bases, g.layers(1+g.IntN(4)))
	}
	for range w.Repositories {
		r := repository{base: g.pick(g.popularBases), layers: g.layers(1 + g.IntN(10))}
		g.publish(&r)
		g.repositories = append(g.repositories, r)
	}
	return g
}

// day yields the requests of one day. It returns false if the caller stops.
func (g *generator) day(start int64, scan bool, yield func(Request) bool) bool {
	for i := range g.bases {
		if g.Float64() < g.NewBases {
			g.rebuild(g.bases[i])
		}
	}
	released, scanned := 0, 0
	for job := range g.Jobs {
		now := start + int64(job)*day/int64(g.Jobs)
		for ; released*g.Jobs < g.NewTags*(job+1); released++ {
			r := &g.repositories[g.pick(g.popular)]
			g.rebuild(r.layers[g.IntN(len(r.layers)):]) // a changed layer changes all layers above it
			g.publish(r)
		}
		r := &g.repositories[g.pick(g.popular)]
		t := len(r.tags) - 1
		if g.Float64() < g.Old {
			t = g.IntN(len(r.tags))
		}
		for {
			if !g.pull(now, r, t, g.Float64() < g.Cold, yield) {
				return false
			}
			if g.Float64() >= 1-1/g.Burst {
				break
			}
		}
		for ; scan && scanned*g.Jobs < len(g.repositories)*(job+1); scanned++ {
			r := &g.repositories[scanned]
			for t := range r.tags {
				if !g.pull(now, r, t, false, yield) {
					return false
				}
			}
		}
	}
	return true
}

// pull requests an image. A client that is not cold has the previous tag.
func (g *generator) pull(now int64, r *repository, t int, cold bool, yield func(Request) bool) bool {
	image := r.tags[t]
	get := func(b blob) bool { return yield(Request{Time: now, Key: b.key, Size: b.size}) }
	if !yield(Request{Time: now, Key: image.manifest.key, Size: image.manifest.size, Manifest: true}) || !get(image.config) {
		return false
	}
	for _, l := range image.layers {
		if !cold && t > 0 && slices.Contains(r.tags[t-1].layers, l) {
			continue
		}
		if !get(l) {
			return false
		}
	}
	return true
}

// publish adds a tag with the repository's current layers.
func (g *generator) publish(r *repository) {
	layers := slices.Concat(g.bases[r.base], r.layers)
	n := int64(len(layers))
	r.tags = append(r.tags, tag{g.blob(500 + 180*n), g.blob(1500 + 400*n), layers})
	if len(r.tags) > tagsKept {
		r.tags = slices.Delete(r.tags, 0, 1)
	}
}

// rebuild replaces layers by others of about the same size, as the same step of a Dockerfile does.
func (g *generator) rebuild(layers []blob) {
	for i, l := range layers {
		layers[i] = g.blob(max(1, int64(float64(l.size)*(0.95+0.1*g.Float64()))))
	}
}

func (g *generator) blob(size int64) blob {
	g.last++
	return blob{g.last, size}
}

func (g *generator) layers(n int) []blob {
	var layers []blob
	for range n {
		// Steps of the golden ratio spread evenly, so that popular images have the same
		// sizes as all. Otherwise one blob would decide a seed's bytes.
		_, g.quantile = math.Modf(g.quantile + math.Phi)
		layers = append(layers, g.blob(layerSize(g.quantile, g.Float64())))
	}
	return layers
}

// layerSize draws a size: q selects the kind, u the size within the kind.
func layerSize(q, u float64) int64 {
	between := func(low, high float64) int64 { return int64(low * math.Pow(high/low, u)) }
	switch {
	case q < 0.65:
		return between(100, megabyte)
	case q < 0.80:
		return between(megabyte, 10*megabyte)
	case q < 0.927:
		return between(10*megabyte, 64*mebibyte)
	}
	// Pareto: few are huge.
	return int64(min(64*mebibyte*math.Pow(1-u, -1/1.9), 4<<30))
}

// pick draws an index by its probability.
func (g *generator) pick(cumulated []float64) int {
	u := g.Float64() * cumulated[len(cumulated)-1]
	return min(sort.SearchFloat64s(cumulated, u), len(cumulated)-1)
}

// zipf returns the cumulated probability of each of n items, the most popular first.
func zipf(n int, exponent float64) []float64 {
	sum, cumulated := 0.0, make([]float64, n)
	for i := range cumulated {
		sum += math.Pow(float64(i+1), -exponent)
		cumulated[i] = sum
	}
	return cumulated
}
