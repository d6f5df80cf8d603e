package trace

import (
	"cmp"
	"iter"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/hashicorp/golang-lru/v2/simplelru"
)

// randomTrace is short and dense, with hits, ties, huge objects and empty ones.
func randomTrace(seed uint64) []Request {
	rnd := rand.New(rand.NewPCG(seed, 1))
	keys := 2 + rnd.IntN(30)
	sizes := make([]int64, keys)
	for i := range sizes {
		sizes[i] = rnd.Int64N(40)
		if rnd.IntN(3) == 0 {
			sizes[i] = smallBlob + rnd.Int64N(40)*smallBlob/8
		}
	}
	var now int64
	requests := make([]Request, 400)
	for i := range requests {
		now += rnd.Int64N(300)
		k := rnd.IntN(1 + rnd.IntN(keys)) // the first keys are popular
		requests[i] = Request{Time: now, Key: uint64(k), Size: sizes[k], Manifest: k%5 == 0}
	}
	return requests
}

// randomTraces yields traces with capacities, until a test fails.
func randomTraces(t *testing.T) iter.Seq2[[]Request, int64] {
	t.Helper()
	return func(yield func([]Request, int64) bool) {
		for seed := range uint64(300) {
			requests := randomTrace(seed)
			if !yield(requests, UniqueBytes(slices.Values(requests))*int64(seed%11)/10) {
				return
			}
			if t.Failed() {
				t.Fatalf("seed %d", seed)
			}
		}
	}
}

// TestPolicies compares each policy with a slow and simple one, request by request.
func TestPolicies(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		fast func(int64) Policy
		slow func(int64) func(Request) bool
	}{
		"LRU": {LRU, func(c int64) func(Request) bool {
			return slow(c, 0, func(s *slowly) { s.rank = float64(s.now) })
		}},
		"TTL": {func(c int64) Policy { return TTL(c, 5000) }, func(c int64) func(Request) bool {
			p := &slowPolicy{capacity: c, update: func(s *slowly) {
				if len(s.uses) == 1 {
					s.rank = float64(s.now)
				}
			}}
			return func(r Request) bool {
				p.kept = slices.DeleteFunc(p.kept, func(s *slowly) bool { return r.Time-s.uses[0] >= 5000 })
				return p.get(r)
			}
		}},
		"ClassedLRU": {ClassedLRU, func(c int64) func(Request) bool {
			return slow(c, c/20, func(s *slowly) { s.rank = float64(s.uses[len(s.uses)-1]) + last(s) })
		}},
		"GDSF": {GDSF, func(c int64) func(Request) bool {
			return slow(c, 0, func(s *slowly) { s.rank = s.inflation + float64(len(s.uses))/float64(max(s.size, 1)) })
		}},
		"LFUDA": {LFUDA, func(c int64) func(Request) bool {
			return slow(c, 0, func(s *slowly) { s.rank = s.inflation + float64(len(s.uses)) })
		}},
		"TwoQ": {TwoQ, func(c int64) func(Request) bool {
			p := &slowPolicy{capacity: c, slack: c / 20, update: func(*slowly) {}}
			p.batch = func() {
				var once int64
				for _, s := range p.kept {
					if !again(s) && last(s) == 0 {
						once += s.size
					}
				}
				for _, s := range p.kept {
					s.rank = float64(s.uses[len(s.uses)-1]) + last(s)
					if last(s) == 0 && (again(s) || once <= p.used()/4) {
						s.rank += 1e12
					}
				}
			}
			return p.get
		}},
		"SIEVE":   {SIEVE, slowSIEVE},
		"S3-FIFO": {S3FIFO, slowS3FIFO},
		"TinyLFU": {TinyLFU, slowTinyLFU},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			hits := 0
			for requests, capacity := range randomTraces(t) {
				fast, slow := c.fast(capacity), c.slow(capacity)
				var objects, bytes int64
				for i, r := range requests {
					got, want := fast.Get(r), slow(r)
					if got != want {
						t.Errorf("request %d for %d: hit %v, want %v", i, r.Key, got, want)
						break
					}
					if fast.Used() > capacity {
						t.Errorf("request %d: %d bytes are kept, with room for %d", i, fast.Used(), capacity)
						break
					}
					if got {
						objects++
						bytes += r.Size
					}
				}
				hits += int(objects)
				bound := Bound(slices.Values(requests), capacity)
				if objects > bound.ObjectHits || bytes > bound.ByteHits {
					t.Errorf("%d hits of %d bytes are beyond the bound of %+v", objects, bytes, bound)
				}
			}
			if hits < 1000 {
				t.Errorf("%d hits in all: nothing was tested", hits)
			}
		})
	}
}

// TestLRULibrary: with objects of one size, LRU matches a library's LRU.
func TestLRULibrary(t *testing.T) {
	t.Parallel()
	for requests, capacity := range randomTraces(t) {
		room := 1 + capacity%20
		want, err := simplelru.NewLRU[uint64, struct{}](int(room), nil)
		if err != nil {
			t.Fatal(err)
		}
		got := LRU(room)
		for i, r := range requests {
			r.Size = 1
			_, hit := want.Get(r.Key)
			want.Add(r.Key, struct{}{})
			if got.Get(r) != hit {
				t.Errorf("request %d: hit %v, the library's %v", i, !hit, hit)
				break
			}
		}
	}
}

// slowly is an object with all its history.
type slowly struct {
	key       uint64
	size      int64
	manifest  bool
	uses      []int64 // times
	now       int     // the request number of its last use
	inflation float64 // at that time
	rank      float64
}

// last ranks small objects and manifests after all others.
func last(s *slowly) float64 {
	if s.manifest || s.size < smallBlob {
		return 1e15
	}
	return 0
}

// again reports whether two uses were at least a minute apart.
func again(s *slowly) bool {
	for i := range s.uses[1:] {
		if s.uses[i+1]-s.uses[i] >= 60 {
			return true
		}
	}
	return false
}

// slowPolicy searches the lowest rank at each eviction.
type slowPolicy struct {
	capacity, slack int64
	update          func(*slowly)
	batch           func() // if set, called before an eviction
	kept            []*slowly
	now             int
	inflation       float64
}

func slow(capacity, slack int64, update func(*slowly)) func(Request) bool {
	return (&slowPolicy{capacity: capacity, slack: slack, update: update}).get
}

func (p *slowPolicy) get(r Request) bool {
	p.now++
	for _, s := range p.kept {
		if s.key == r.Key {
			s.uses = append(s.uses, r.Time)
			s.now, s.inflation = p.now, p.inflation
			p.update(s)
			return true
		}
	}
	if r.Size > p.capacity {
		return false
	}
	want := p.capacity - r.Size
	if p.used() > want {
		want -= p.slack
		if p.batch != nil {
			p.batch()
		}
	}
	for p.used() > max(want, 0) || want < 0 && len(p.kept) > 0 {
		least := slices.MinFunc(p.kept, func(a, b *slowly) int {
			return cmp.Or(cmp.Compare(a.rank, b.rank), cmp.Compare(a.key, b.key))
		})
		p.inflation = least.rank
		p.kept = slices.DeleteFunc(p.kept, func(s *slowly) bool { return s == least })
	}
	s := &slowly{key: r.Key, size: r.Size, manifest: r.Manifest, uses: []int64{r.Time}, now: p.now, inflation: p.inflation}
	p.update(s)
	p.kept = append(p.kept, s)
	return false
}

func (p *slowPolicy) used() int64 {
	var sum int64
	for _, s := range p.kept {
		sum += s.size
	}
	return sum
}

// bytesOf returns the sum of the requests' sizes.
func bytesOf(rs []Request) (sum int64) {
	for _, r := range rs {
		sum += r.Size
	}
	return sum
}

// slowSIEVE has a slice, oldest first.
func slowSIEVE(capacity int64) func(Request) bool {
	var kept []Request
	used := map[uint64]bool{}
	hand := 0
	return func(r Request) bool {
		if slices.ContainsFunc(kept, func(k Request) bool { return k.Key == r.Key }) {
			used[r.Key] = true
			return true
		}
		if r.Size > capacity {
			return false
		}
		for bytesOf(kept)+r.Size > capacity {
			if hand >= len(kept) {
				hand = 0
			}
			if k := kept[hand].Key; used[k] {
				used[k] = false
				hand++
				continue
			}
			kept = slices.Delete(kept, hand, hand+1)
			if hand == len(kept) { // it was the newest: start again before a newer one comes
				hand = 0
			}
		}
		kept = append(kept, r)
		return false
	}
}

// slowS3FIFO has three slices, oldest first.
func slowS3FIFO(capacity int64) func(Request) bool {
	var small, main, ghost []Request
	freq := map[uint64]int{}
	index := func(rs []Request, key uint64) int {
		return slices.IndexFunc(rs, func(r Request) bool { return r.Key == key })
	}
	evictSmall := func() {
		for len(small) > 0 {
			r := small[0]
			small = small[1:]
			if freq[r.Key] >= 2 {
				freq[r.Key] = 0
				main = append(main, r)
				continue
			}
			ghost = append(ghost, r)
			for bytesOf(ghost) > capacity-capacity/10 {
				ghost = ghost[1:]
			}
			return
		}
	}
	evictMain := func() {
		for {
			r := main[0]
			main = main[1:]
			if freq[r.Key] == 0 {
				return
			}
			freq[r.Key]--
			main = append(main, r)
		}
	}
	return func(r Request) bool {
		if index(small, r.Key) >= 0 || index(main, r.Key) >= 0 {
			freq[r.Key] = min(3, freq[r.Key]+1)
			return true
		}
		if r.Size > capacity {
			return false
		}
		for bytesOf(small)+bytesOf(main)+r.Size > capacity {
			if len(main) == 0 || len(small) > 0 && bytesOf(small) > capacity/10 {
				evictSmall()
			} else {
				evictMain()
			}
		}
		freq[r.Key] = 0
		if i := index(ghost, r.Key); i >= 0 {
			ghost = slices.Delete(ghost, i, i+1)
			main = append(main, r)
		} else {
			small = append(small, r)
		}
		return false
	}
}

// slowTinyLFU has three slices, the next victim first.
func slowTinyLFU(capacity int64) func(Request) bool {
	var window, probation, protected []Request
	freq := map[uint64]int{}
	requests := 0
	room := capacity - capacity/100
	take := func(from *[]Request, key uint64) (r Request, ok bool) {
		i := slices.IndexFunc(*from, func(r Request) bool { return r.Key == key })
		if i < 0 {
			return r, false
		}
		r = (*from)[i]
		*from = slices.Delete(slices.Clone(*from), i, i+1)
		return r, true
	}
	admit := func(c Request) {
		var victims []Request
		sum := 0
		for _, v := range slices.Concat(probation, protected) {
			if bytesOf(probation)+bytesOf(protected)-bytesOf(victims)+c.Size <= room {
				break
			}
			victims = append(victims, v)
			sum += freq[v.Key]
		}
		refused := len(victims) > 0 && freq[c.Key] <= sum
		for _, v := range victims {
			from := &probation
			r, ok := take(from, v.Key)
			if !ok {
				from = &protected
				r, _ = take(from, v.Key)
			}
			if refused {
				*from = append(*from, r)
			}
		}
		if !refused {
			probation = append(probation, c)
		}
	}
	return func(r Request) bool {
		freq[r.Key]++
		if requests++; requests >= 10*max(1, len(window)+len(probation)+len(protected)) {
			requests /= 2
			for k := range freq {
				freq[k] /= 2
			}
		}
		for _, q := range []*[]Request{&window, &protected} {
			if r, ok := take(q, r.Key); ok {
				*q = append(*q, r)
				return true
			}
		}
		if r, ok := take(&probation, r.Key); ok {
			protected = append(protected, r)
			for bytesOf(protected) > room*4/5 {
				probation = append(probation, protected[0])
				protected = protected[1:]
			}
			return true
		}
		if r.Size > room {
			return false
		}
		window = append(window, r)
		for bytesOf(window) > capacity/100 {
			c := window[0]
			window = window[1:]
			admit(c)
		}
		return false
	}
}
