package storage

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/cachalot-registry/cachalot/storage/index"
)

// BenchmarkHitWhileEvicting compares hits during an eviction with hits alone, in pairs, one
// pair an iteration: A B, B A, ... A client requests files of 64 KiB and small blobs in turn,
// some 900 a second, over a socket. The benchmark reports the medians of the pairs.
func BenchmarkHitWhileEvicting(b *testing.B) {
	n := benchBlobs(b)
	for name, tc := range map[string]struct {
		pinned  func(upstream, repository string) bool
		waiting bool // a download waits for an eviction, so evictions do not rest
		idle    bool // nothing is evicted: the noise of the measurement
	}{"paced": {}, "with pins": {pinned: pinnedBase}, "full speed": {waiting: true}, "nothing": {idle: true}} {
		b.Run(fmt.Sprintf("%d blobs/%s", n, name), func(b *testing.B) {
			size := int64(n) * block
			s, hot := hotStore(b, Config{Path: manyBlobs(b, n), Pinned: tc.pinned, MaxSize: Size{Bytes: 2*size + 1000*smallBlob}}, n)
			if tc.waiting {
				defer s.evictor.waiting.enter()()
			}
			ask := answering(b, s, hot)
			// The reservation is above the high mark. Without it nothing is evicted.
			var reserved int64
			evict := func() {
				if !s.evictor.isTrimming() {
					reserved += size / 10
					s.space.release(-size / 10)
					s.evictor.trim()
				}
			}
			measure := func(before func()) (all [len(hot)][]time.Duration) {
				for i := range 6000 + n/100 {
					before()
					kind := i % len(hot)
					all[kind] = append(all[kind], ask(kind))
					time.Sleep(500 * time.Microsecond) // 1 ms: timers are coarse
				}
				return all
			}
			evicting := func() [len(hot)][]time.Duration {
				if tc.idle {
					return measure(func() {})
				}
				reserved = size
				s.space.release(-reserved)
				defer func() {
					s.space.release(reserved)
					s.evictor.waitTrimmed()
				}()
				return measure(evict)
			}
			measure(func() {}) // warm up
			figures := map[string][]float64{}
			var pairs int
			for b.Loop() {
				var alone, beside [len(hot)][]time.Duration
				if pairs++; pairs%2 == 0 {
					beside = evicting()
				}
				alone = measure(func() {})
				if pairs%2 == 1 {
					beside = evicting()
				}
				for kind, name := range []string{"file", "small"} {
					for _, percent := range []int{50, 99} {
						a, e := micro(alone[kind], percent), micro(beside[kind], percent)
						for unit, v := range map[string]float64{"us-alone": a, "us-evicting": e, "ratio": e / a} {
							unit = fmt.Sprintf("%s-p%d-%s", name, percent, unit)
							figures[unit] = append(figures[unit], v)
						}
					}
				}
			}
			for unit, all := range figures {
				slices.Sort(all)
				b.ReportMetric(all[len(all)/2], unit)
			}
			b.ReportMetric(testutil.ToFloat64(s.metrics.evictedBytes.WithLabelValues(reasonSpace))/block/float64(pairs), "evicted/pair")
			if err := s.Close(); err != nil {
				b.Fatal(err)
			}
		})
	}
}

// hotStore opens a store of n small blobs, and adds some of 64 KiB. It returns the blobs to
// request, large and small. They would be evicted last.
func hotStore(b *testing.B, c Config, n int) (s *Store, hot [2][]digest.Digest) {
	b.Helper()
	k := disk{root: c.Path}
	for i := range 1000 {
		d := digest.FromString("hot " + strconv.Itoa(i))
		if err := errors.Join(os.WriteFile(k.blob(d), nil, 0o600), os.Truncate(k.blob(d), smallBlob)); err != nil {
			b.Fatal(err)
		}
		hot[0] = append(hot[0], d)
		hot[1] = append(hot[1], digest.FromBytes(tiny(i)))
	}
	s = benchStore(b, c)
	waitReconciled(b, s, n+len(hot[0]))
	for _, d := range hot[0] {
		if err := s.PutLink(scope(), d, ""); err != nil {
			b.Fatal(err)
		}
	}
	if err := s.ledger.update(slices.Values(slices.Concat(hot[:]...)), func(_ digest.Digest, r *index.Record) {
		r.Manifest, r.Accessed = true, time.Now().Unix()+1 // newer than the others
	}); err != nil {
		b.Fatal(err)
	}
	return s, hot
}

// answering serves the hot blobs on a socket. It returns a function that requests one and
// measures how long that takes.
func answering(b *testing.B, s *Store, hot [2][]digest.Digest) (ask func(kind int) time.Duration) {
	b.Helper()
	l, err := new(net.ListenConfig).Listen(b.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	client, err := new(net.Dialer).DialContext(b.Context(), "tcp", l.Addr().String())
	if err != nil {
		b.Fatal(err)
	}
	server, err := l.Accept()
	if err != nil {
		b.Fatal(err)
	}
	var wg sync.WaitGroup
	b.Cleanup(func() {
		if err := errors.Join(client.Close(), l.Close()); err != nil {
			b.Error(err)
		}
		wg.Wait()
	})
	wg.Go(func() {
		defer func() { _ = server.Close() }()
		random := rand.New(rand.NewPCG(1, 2))
		for kind := make([]byte, 1); ; {
			if _, err := server.Read(kind); err != nil {
				return
			}
			blobs := hot[kind[0]]
			blob, err := s.Get(b.Context(), scope(), blobs[random.IntN(len(blobs))], nil)
			if err == nil {
				_, err = io.Copy(server, blob.Content)
				blob.Close()
			}
			if err != nil {
				b.Error(err)
				return
			}
		}
	})
	answer := make([]byte, smallBlob)
	return func(kind int) time.Duration {
		size := []int{smallBlob, len(tiny(0))}[kind]
		start := time.Now()
		_, err := client.Write([]byte{byte(kind)})
		if err == nil {
			_, err = io.ReadFull(client, answer[:size])
		}
		if err != nil {
			b.Fatal(err)
		}
		return time.Since(start)
	}
}
