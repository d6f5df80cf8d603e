package storage

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/opencontainers/go-digest"
	"go.uber.org/goleak"

	"github.com/cachalot-registry/cachalot/storage/download"
	"github.com/cachalot-registry/cachalot/storage/index"
	"github.com/cachalot-registry/cachalot/upstream/upstreamtest"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(upstreamtest.Waiting{Tests: m})
}

func openStore(t *testing.T, dir string, change ...func(*Config)) *Store {
	t.Helper()
	cfg := Config{Path: dir, MaxFills: 16}
	for _, c := range change {
		c(&cfg)
	}
	s, err := Open(cfg, NewMetrics(), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// origin is a scripted upstream for one blob. It counts opens and bytes.
type origin struct {
	content []byte
	cuts    []int64         // each open breaks once it reaches the next of these offsets
	noRange bool            // answers 200 to a range
	noSize  bool            // announces no length
	size    func(int) int64 // announced at the nth open (from 0); nil: the truth
	refuse  func(int) error // fails the nth open
	gate    chan struct{}   // every open waits for one value, when set
	hold    chan struct{}   // the body waits here before its second half
	mu      sync.Mutex      // guards cuts
	opens   atomic.Int64
	sent    atomic.Int64
	offsets []int64
}

func (o *origin) digest() digest.Digest { return digest.FromBytes(o.content) }

func (o *origin) source(ctx context.Context, s download.Span) (*download.Part, error) {
	offset := s.Offset
	n := int(o.opens.Add(1)) - 1
	if o.gate != nil {
		select {
		case <-o.gate:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	if o.refuse != nil {
		if err := o.refuse(n); err != nil {
			return nil, err
		}
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.offsets = append(o.offsets, offset)
	if o.noRange || offset > int64(len(o.content)) { // as after a 416: the whole blob
		offset = 0
	}
	size := int64(len(o.content))
	if o.size != nil {
		size = o.size(n)
	}
	if o.noSize {
		size = -1
	}
	end, broken := int64(len(o.content)), false
	for len(o.cuts) > 0 {
		cut := o.cuts[0]
		o.cuts = o.cuts[1:]
		if cut >= offset {
			end, broken = cut, true
			break
		}
	}
	body := &originBody{origin: o, ctx: ctx, Reader: bytes.NewReader(o.content[offset:end]), broken: broken, half: int64(len(o.content)) / 2, at: offset}
	return &download.Part{Body: body, Offset: offset, Size: size, MediaType: "application/x-test"}, nil
}

type originBody struct {
	*bytes.Reader
	origin   *origin
	ctx      context.Context
	broken   bool
	at, half int64
}

func (b *originBody) Read(p []byte) (int, error) {
	if h := b.origin.hold; h != nil {
		if b.at < b.half {
			p = p[:min(int64(len(p)), b.half-b.at)]
		} else {
			select {
			case <-h:
			case <-b.ctx.Done():
				return 0, b.ctx.Err()
			}
		}
	}
	n, err := b.Reader.Read(p)
	b.at += int64(n)
	b.origin.sent.Add(int64(n))
	if errors.Is(err, io.EOF) && b.broken {
		err = errors.New("connection reset by test")
	}
	return n, err
}

func (b *originBody) Close() error { return nil }

func scope() Scope { return Scope{Upstream: "docker.io", Repository: "library/a"} }

// fetch gets the whole blob through s.
func fetch(t *testing.T, s *Store, d digest.Digest, src download.Source) ([]byte, Outcome, error) {
	t.Helper()
	b, err := s.Get(t.Context(), scope(), d, src)
	if err != nil {
		return nil, 0, err
	}
	defer b.Close()
	got, err := io.ReadAll(b.Content)
	return got, b.Outcome, err
}

func mustFetch(t *testing.T, s *Store, o *origin, want Outcome) {
	t.Helper()
	got, outcome, err := fetch(t, s, o.digest(), o.source)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, o.content) {
		t.Fatalf("got %d bytes, not the blob's %d", len(got), len(o.content))
	}
	if outcome != want {
		t.Errorf("outcome %d, want %d", outcome, want)
	}
}

// settle waits until no fill is in progress, and no eviction runs.
func settle(t *testing.T, s *Store) {
	t.Helper()
	for {
		running := s.gate.running()
		if len(running) == 0 {
			s.evictor.waitTrimmed()
			return
		}
		if _, err := running[0].await(t.Context(), func(st state) bool { return st.phase > streaming }); err != nil {
			t.Fatal(err)
		}
		runtime.Gosched() // the fill is about to leave the table
	}
}

// checkDisk checks invariant I2 and the totals: every file has the name of its digest, and the
// totals agree with the disk.
func checkDisk(t *testing.T, s *Store) {
	t.Helper()
	settle(t, s)
	s.ledger.loaded(t.Context())
	var total, files int64
	s.disk.blobs(func(d digest.Digest, info os.FileInfo) bool {
		b, err := os.ReadFile(s.disk.blob(d))
		if err != nil {
			t.Error(err)
		}
		if got := d.Algorithm().FromBytes(b); got != d {
			t.Errorf("file of %s has the content of %s", d, got)
		}
		total += blocks(info.Size())
		files++
		return true
	})
	var broken int64
	if err := s.disk.partials(func(_ partial, info os.FileInfo) { broken += blocks(info.Size()) }); err != nil {
		t.Error(err)
	}
	if got := s.space.filling(); got != broken || s.space.promised() != 0 {
		t.Errorf("books say %d bytes in fills/ and %d to come, the disk %d at rest", got, s.space.promised(), broken)
	}
	s.ledger.mu.Lock()
	defer s.ledger.mu.Unlock()
	if s.ledger.bytes != total || s.ledger.count != files {
		t.Errorf("books say %d bytes in %d blobs, the disk %d in %d", s.ledger.bytes, s.ledger.count, total, files)
	}
}

// put stores a blob of the given size, last used at the given second.
func put(t *testing.T, s *Store, seed uint64, size int, accessed int64, manifest bool) digest.Digest {
	t.Helper()
	b := upstreamtest.Random(seed, size)
	d := digest.FromBytes(b)
	blob, err := s.Get(t.Context(), Scope{Upstream: "u", Repository: "r", Manifest: manifest}, d, download.Bytes("", b))
	if err != nil {
		t.Fatal(err)
	}
	defer blob.Close()
	if err := blob.Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	settle(t, s)
	setRecord(t, s, d, func(r *index.Record) { r.Accessed = accessed })
	return d
}

// setRecord writes all hits, then changes a blob's record in the index.
func setRecord(t *testing.T, s *Store, d digest.Digest, change func(*index.Record)) {
	t.Helper()
	s.access.flush()
	if err := s.ledger.update(slices.Values([]digest.Digest{d}), func(_ digest.Digest, r *index.Record) { change(r) }); err != nil {
		t.Fatal(err)
	}
}

// keeping is scope() with a Retention.
func keeping(r Retention) Scope {
	sc := scope()
	sc.Keep = r
	return sc
}

func noStore() Scope { return keeping(Retention{NoStore: true}) }

// countRecords counts the records of the index.
func countRecords(t *testing.T, s *Store) (n int) {
	t.Helper()
	if err := s.index.Records("", func([]byte, index.Record) bool { n++; return true }); err != nil {
		t.Fatal(err)
	}
	return n
}

// countLinks counts the links of the index.
func countLinks(t *testing.T, s *Store) (n int) {
	t.Helper()
	for d, err := range s.index.LinkedDigests("", "", "") {
		if err != nil {
			t.Fatal(err)
		}
		n += countLinksOf(t, s, d)
	}
	return n
}

// countLinksOf counts the links of a digest.
func countLinksOf(t *testing.T, s *Store, d digest.Digest) (n int) {
	t.Helper()
	if err := s.index.Links(d, func(index.LinkAt) bool { n++; return true }); err != nil {
		t.Fatal(err)
	}
	return n
}

// checkNothing checks that nothing is on disk and that all totals are 0.
func checkNothing(t *testing.T, s *Store) {
	t.Helper()
	checkDisk(t, s)
	if bytes, filling, n := s.ledger.total(), s.space.filling(), countLinks(t, s); bytes != 0 || filling != 0 || n != 0 {
		t.Errorf("%d bytes in blobs, %d in fills/, %d links; want nothing", bytes, filling, n)
	}
}

// open gets a blob, and fails the test on an error.
func open(t *testing.T, s *Store, sc Scope, d digest.Digest, src download.Source) *Blob {
	t.Helper()
	b, err := s.Get(t.Context(), sc, d, src)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Close)
	return b
}
