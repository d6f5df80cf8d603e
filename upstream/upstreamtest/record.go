package upstreamtest

import (
	"net/http"
	"net/url"
	"sync"
	"sync/atomic"

	"github.com/opencontainers/go-digest"
)

// Op is what a request is for.
type Op string

const (
	Ping         Op = "ping" // GET /v2/
	HeadManifest Op = "head_manifest"
	GetManifest  Op = "get_manifest"
	HeadBlob     Op = "head_blob"
	GetBlob      Op = "get_blob"
	Tags         Op = "tags"
	Referrers    Op = "referrers"
	Token        Op = "token"
	CDN          Op = "cdn"   // GET or HEAD of a signed URL
	Other        Op = "other" // pushes, deletes and unknown requests
)

// Request is a request that arrived, and its result.
type Request struct {
	Op        Op
	Method    string
	Host      string // as the client wrote it
	Path      string
	Query     url.Values // with those of a POST's form
	Header    http.Header
	User      string // the user, by password or token
	Repo      string
	Reference string // tag or digest
	Status    int    // of the answer; 0 until it begins
	Sent      int64  // body bytes of the answer
}

// Match selects requests. A zero field matches everything.
type Match struct {
	Op        Op
	Method    string
	Repo      string // of a token request: in its scope
	Reference string
	// AnyAuth also matches requests that would be answered 401.
	AnyAuth bool
	// After lets this many matching requests pass first.
	After int
	// Times ends the fault after this many requests; 0: never.
	Times int
}

func (m Match) matches(q *Request) bool {
	return (m.Op == "" || m.Op == q.Op) && (m.Method == "" || m.Method == q.Method) &&
		(m.Repo == "" || m.Repo == q.Repo) && (m.Reference == "" || m.Reference == q.Reference)
}

// Scripted is an active fault.
type Scripted struct {
	registry *Registry
	match    Match
	faults   []Fault
	passed   int // guarded by registry.mu
	applied  int // guarded by registry.mu
}

// Applied returns how many requests had the fault.
func (s *Scripted) Applied() int {
	s.registry.mu.Lock()
	defer s.registry.mu.Unlock()
	return s.applied
}

// Remove ends the fault.
func (s *Scripted) Remove() {
	s.registry.mu.Lock()
	defer s.registry.mu.Unlock()
	s.match.Times = max(s.applied, 1)
	s.applied = s.match.Times
}

// Fault makes matching requests go wrong from now on. If several match, all apply, the oldest
// first.
func (r *Registry) Fault(m Match, faults ...Fault) *Scripted {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := &Scripted{registry: r, match: m, faults: faults}
	r.scripts = append(r.scripts, s)
	return s
}

// faultsFor counts the request against every script it matches.
func (r *Registry) faultsFor(q *Request, unauthorized bool) []Fault {
	r.mu.Lock()
	defer r.mu.Unlock()
	var list []Fault
	for _, s := range r.scripts {
		if !s.match.matches(q) || unauthorized && !s.match.AnyAuth || s.match.Times > 0 && s.applied >= s.match.Times {
			continue
		}
		if s.passed < s.match.After {
			s.passed++
			continue
		}
		s.applied++
		list = append(list, s.faults...)
	}
	return list
}

// Requests returns all requests so far, in the order of their arrival.
func (r *Recorder) Requests() []Request {
	r.recordMu.Lock()
	defer r.recordMu.Unlock()
	list := make([]Request, len(r.log))
	for i, q := range r.log {
		list[i] = *q
	}
	return list
}

// Select returns the requests so far that match.
func (r *Recorder) Select(m Match) []Request {
	var list []Request
	for _, q := range r.Requests() {
		if m.matches(&q) {
			list = append(list, q)
		}
	}
	return list
}

// Count returns how many requests arrived for one of the ops, or for any if none is given.
func (r *Recorder) Count(ops ...Op) int {
	n := 0
	for _, q := range r.Requests() {
		if len(ops) == 0 {
			n++
		}
		for _, op := range ops {
			if q.Op == op {
				n++
			}
		}
	}
	return n
}

// Counts returns how many requests arrived, by op.
func (r *Recorder) Counts() map[Op]int {
	counts := map[Op]int{}
	for _, q := range r.Requests() {
		counts[q.Op]++
	}
	return counts
}

// Sent returns how many body bytes the registry or its CDN handed to the network for one
// digest.
func (r *Recorder) Sent(d digest.Digest) int64 {
	r.recordMu.Lock()
	defer r.recordMu.Unlock()
	return r.sent[d]
}

// SentAll is the same for all manifests and blobs.
func (r *Recorder) SentAll() int64 {
	r.recordMu.Lock()
	defer r.recordMu.Unlock()
	var n int64
	for _, sent := range r.sent {
		n += sent
	}
	return n
}

// Wire returns the bytes that crossed the sockets of the registry, its token server and its
// CDN, headers and TLS included.
func (r *Recorder) Wire() (received, sent int64) { return r.received.Load(), r.written.Load() }

// Forget clears all counts and the log.
func (r *Recorder) Forget() {
	r.recordMu.Lock()
	defer r.recordMu.Unlock()
	r.log = nil
	clear(r.sent)
	r.received.Store(0)
	r.written.Store(0)
}

// Recorder keeps what arrived at a registry and what it sent.
type Recorder struct {
	received, written atomic.Int64

	recordMu sync.Mutex // guards the fields below, and the Requests behind log
	log      []*Request
	sent     map[digest.Digest]int64
}

func (r *Recorder) arrive(q *Request) {
	r.recordMu.Lock()
	defer r.recordMu.Unlock()
	r.log = append(r.log, q)
}

func (r *Recorder) answered(q *Request, status int) {
	r.recordMu.Lock()
	defer r.recordMu.Unlock()
	q.Status = status
}

// known sets the user of a request.
func (r *Recorder) known(q *Request, user string) {
	r.recordMu.Lock()
	defer r.recordMu.Unlock()
	q.User = user
}

// count adds n body bytes to q and, unless it is "", to d.
func (r *Recorder) count(q *Request, d digest.Digest, n int) {
	r.recordMu.Lock()
	defer r.recordMu.Unlock()
	q.Sent += int64(n)
	if d == "" {
		return
	}
	if r.sent == nil {
		r.sent = map[digest.Digest]int64{}
	}
	r.sent[d] += int64(n)
}

// Answer records a response: its status, and each piece of its body before the client can read
// it.
type Answer struct {
	http.ResponseWriter
	// Digest is that of the body. For a manifest or a blob it is set from the header.
	Digest digest.Digest

	recorder *Recorder
	record   *Request
	status   int
}

// Record records a request for op and reference. If op is "", its path says what it is for. The
// response must be written to the returned Answer.
func (r *Recorder) Record(w http.ResponseWriter, req *http.Request, op Op, reference string) *Answer {
	var q *Request
	if op == "" {
		q = parse(req)
	} else {
		q = newRecord(req, op)
		q.Reference = reference
	}
	r.arrive(q)
	return &Answer{ResponseWriter: w, recorder: r, record: q}
}

// WriteHeader implements [http.ResponseWriter].
func (a *Answer) WriteHeader(status int) {
	if a.status == 0 && status >= 200 {
		a.status = status
		a.recorder.answered(a.record, status)
		if (a.record.Op == GetManifest || a.record.Op == GetBlob) && status < 300 {
			a.Digest = digest.Digest(a.Header().Get("Docker-Content-Digest"))
		}
	}
	a.ResponseWriter.WriteHeader(status)
}

// Write implements [http.ResponseWriter].
func (a *Answer) Write(p []byte) (int, error) {
	if a.status == 0 {
		a.WriteHeader(http.StatusOK)
	}
	a.recorder.count(a.record, a.Digest, len(p))
	n, err := a.ResponseWriter.Write(p)
	a.recorder.count(a.record, a.Digest, n-len(p))
	return n, err
}

// Unwrap is for [http.ResponseController].
func (a *Answer) Unwrap() http.ResponseWriter { return a.ResponseWriter }

// WantCounts fails the test unless exactly these requests arrived since the last call. It
// ignores one ping, because each start of a mirror sends one.
func (r *Registry) WantCounts(tb interface {
	Helper()
	Errorf(format string, args ...any)
}, want map[Op]int,
) {
	tb.Helper()
	got := r.Counts()
	if got[Ping] > 1 {
		tb.Errorf("%d pings upstream", got[Ping])
	}
	delete(got, Ping)
	for op, n := range got {
		if want[op] != n {
			tb.Errorf("%d x %s upstream, want %d", n, op, want[op])
		}
	}
	for op, n := range want {
		if _, ok := got[op]; !ok && n > 0 {
			tb.Errorf("no %s upstream, want %d", op, n)
		}
	}
	r.Forget()
}
