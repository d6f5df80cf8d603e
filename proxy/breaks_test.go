package proxy

import (
	"bytes"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cachalot-registry/cachalot/upstream"
	ut "github.com/cachalot-registry/cachalot/upstream/upstreamtest"
)

// TestUpstreamBreaks: a client sees only a pause. The upstream sends no byte twice, except
// those in flight or sent without need.
func TestUpstreamBreaks(t *testing.T) {
	t.Parallel()
	const size = 100_000
	for name, tc := range map[string]struct {
		first []ut.Fault
		then  []ut.Fault // of the requests after the first
		times int        // number of those; 0: one
		twice int64      // at most this many bytes twice
		gets  int        // 0: at least two
		takes time.Duration
	}{
		"cut":                       {first: []ut.Fault{ut.CutAfter(1000)}, gets: 2},
		"cut at once":               {first: []ut.Fault{ut.CutAfter(0)}, gets: 2},
		"cut before the last byte":  {first: []ut.Fault{ut.CutAfter(size - 1)}, gets: 2},
		"reset":                     {first: []ut.Fault{ut.ResetAfter(50_000)}, twice: 50_000, gets: 2},
		"reset at once":             {first: []ut.Fault{ut.ResetAfter(0)}, gets: 2},
		"stall":                     {first: []ut.Fault{ut.StallAfter(1000, nil)}},
		"trickle":                   {first: []ut.Fault{ut.TrickleAfter(1000, time.Millisecond)}, twice: 1000},
		"5xx at the start":          {first: []ut.Fault{ut.Status(502)}, gets: 2},
		"cut, then 200 to a range":  {first: []ut.Fault{ut.CutAfter(1000)}, then: []ut.Fault{ut.IgnoreRange()}, twice: 1000, gets: 2},
		"cut, then wrong range":     {first: []ut.Fault{ut.CutAfter(1000)}, then: []ut.Fault{ut.WrongContentRange("bytes 5-9/10")}, twice: size, gets: 3},
		"cut, then shifted range":   {first: []ut.Fault{ut.CutAfter(1000)}, then: []ut.Fault{ut.ShiftedRange(7)}, twice: size, gets: 3},
		"cut, then 416":             {first: []ut.Fault{ut.CutAfter(1000)}, then: []ut.Fault{ut.RangeNotSatisfiable()}, twice: 1000, gets: 3},
		"cut, then 429, then again": {first: []ut.Fault{ut.CutAfter(1000)}, then: []ut.Fault{ut.Status(429)}, twice: 1000, gets: 3},
		"cut, then 503":             {first: []ut.Fault{ut.CutAfter(1000)}, then: []ut.Fault{ut.Status(503)}, times: 2, gets: 4},
		"cut, then 500 for a while": {first: []ut.Fault{ut.CutAfter(1000)}, then: []ut.Fault{ut.Status(500)}, times: 4, twice: 1000, gets: 6},
		"cut, then 503 that says": {
			first: []ut.Fault{ut.CutAfter(1000)}, then: []ut.Fault{ut.Status(503, "Retry-After", "1")}, gets: 3, takes: time.Second,
		},
		"cut, then 429 that says": {
			first: []ut.Fault{ut.CutAfter(1000)}, then: []ut.Fault{ut.Status(429, "Retry-After", "1")}, gets: 3, takes: time.Second,
		},
		"short, without a length": {first: []ut.Fault{ut.OpenEnd(), ut.CutAfter(1000)}, gets: 2},
		"short, without a length, no ranges": {
			first: []ut.Fault{ut.OpenEnd(), ut.CutAfter(1000)}, then: []ut.Fault{ut.IgnoreRange(), ut.OpenEnd()}, twice: 1000, gets: 2,
		},
		"cut, chunked":   {first: []ut.Fault{ut.NoLength(), ut.CutAfter(1000)}, gets: 2},
		"reset, chunked": {first: []ut.Fault{ut.NoLength(), ut.ResetAfter(1000)}, twice: 1000, gets: 2},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			up := ut.New(t, ut.Options{})
			layer := ut.NewContent("", ut.Random(10, size))
			up.AddBlob("library/app", layer)
			up.Fault(ut.Match{Op: ut.GetBlob, Times: 1}, tc.first...)
			if tc.then != nil {
				up.Fault(ut.Match{Op: ut.GetBlob, After: 1, Times: max(tc.times, 1)}, tc.then...)
			}
			m := newMirror(t, nil, registry(t, "docker.io", up.URL, func(c *upstream.Config) {
				if tc.gets == 0 { // the timeout ends it; a slow machine may need more than one try
					c.Timeouts.Progress = 100 * time.Millisecond
				}
			}))
			start := time.Now()
			m.want(m.get("/v2/library/app/blobs/"+layer.Digest.String()), layer)
			if took := time.Since(start); took < tc.takes {
				t.Errorf("asked again within %s, want not before %s", took, tc.takes)
			}
			if n := up.Count(ut.GetBlob); n != tc.gets && tc.gets > 0 || n < 2 {
				t.Errorf("%d GETs, want %d", n, tc.gets)
			}
			if first := up.Select(ut.Match{Op: ut.GetBlob})[0]; name == "trickle" && first.Sent > 1500 {
				t.Errorf("%d bytes at a byte a millisecond", first.Sent)
			}
			if sent := up.Sent(layer.Digest); sent < size || sent > size+tc.twice {
				t.Errorf("%d bytes left the upstream, want %d and at most %d more", sent, size, tc.twice)
			}
		})
	}
}

// TestRetryAfter_DuringBlob: the upstream asks for a long pause in the middle of a blob.
// The mirror does not retry, and clients get an error at once. The part stays.
func TestRetryAfter_DuringBlob(t *testing.T) {
	t.Parallel()
	for status, want := range map[int]struct {
		status int
		code   string
		after  int // seconds, of the upstream's ten minutes
	}{429: {503, "TOOMANYREQUESTS", 600}, 503: {502, "UNAVAILABLE", 300}} {
		t.Run(strconv.Itoa(status), func(t *testing.T) {
			t.Parallel()
			up := ut.New(t, ut.Options{})
			layer := ut.NewContent("", ut.Random(10, 100_000))
			up.AddBlob("library/app", layer)
			path := "/v2/library/app/blobs/" + layer.Digest.String()
			begun := make(chan struct{})
			up.Fault(ut.Match{Op: ut.GetBlob, Times: 1}, ut.StallAfter(30_000, begun), ut.CutAfter(60_000))
			up.Fault(ut.Match{Op: ut.GetBlob, After: 1, Times: 1}, ut.Status(status, "Retry-After", "600"))
			m := newMirror(t, nil, registry(t, "docker.io", up.URL))
			start := time.Now()
			resp, err := m.begin(t.Context(), http.MethodGet, path)
			if err != nil {
				t.Fatal(err)
			}
			close(begun)
			got, err := io.ReadAll(resp.Body)
			if _ = resp.Body.Close(); resp.StatusCode != http.StatusOK || err == nil || !bytes.HasPrefix(layer.Bytes, got) {
				t.Errorf("%d, %d bytes, %v", resp.StatusCode, len(got), err)
			}
			if took := time.Since(start); took > longestRest/2 {
				t.Errorf("told after %s", took)
			}
			for range 3 {
				a := m.get(path)
				m.wantError(a, want.status, want.code)
				if after, err := strconv.Atoi(a.header.Get("Retry-After")); err != nil || after < want.after-10 || after > want.after {
					t.Errorf("Retry-After %q", a.header.Get("Retry-After"))
				}
			}
			up.WantCounts(t, map[ut.Op]int{ut.GetBlob: 2})
			// A restart stands for the end of the pause. The mirror fetches only the rest.
			m.restart(nil, registry(t, "docker.io", up.URL))
			m.want(m.get(path), layer)
			up.WantCounts(t, map[ut.Op]int{ut.GetBlob: 1})
		})
	}
}

// TestTrickleElsewhere: a slow download resumes at the registry's next URL.
func TestTrickleElsewhere(t *testing.T) {
	t.Parallel()
	layer := ut.NewContent("", ut.Random(10, 1<<20))
	slow, up := ut.New(t, ut.Options{}), ut.New(t, ut.Options{})
	slow.AddBlob("library/app", layer)
	up.AddBlob("library/app", layer)
	const well = 300_000 // bytes before it slows down
	slow.Fault(ut.Match{Op: ut.GetBlob}, ut.TrickleAfter(well, time.Millisecond))
	m := newMirror(t, nil, registry(t, "docker.io", slow.URL, func(c *upstream.Config) {
		c.URLs = append(c.URLs, up.URL)
		c.Timeouts.Progress = 300 * time.Millisecond
	}))
	m.want(m.get("/v2/library/app/blobs/"+layer.Digest.String()), layer)
	if n, sent := slow.Count(ut.GetBlob), slow.Sent(layer.Digest); n != 1 || sent > well+1000 {
		t.Errorf("the slow URL was asked %d times, and sent %d bytes", n, sent)
	}
	if sent := slow.Sent(layer.Digest) + up.Sent(layer.Digest); sent > layer.Size+layer.Size/100 {
		t.Errorf("%d bytes left the upstream, want %d", sent, layer.Size)
	}
}

// TestNoNameServer: without a name server, the mirror serves stored content, and soon fails
// at once for the rest.
func TestNoNameServer(t *testing.T) { // not parallel: it replaces the process' resolver
	t.Setenv("NO_PROXY", "*")
	for name, tc := range map[string]struct {
		gone   func(*ut.Names)
		status int // before the breaker opens
	}{
		"no such name": {func(n *ut.Names) { n.Forget("registry.test") }, http.StatusBadGateway},
		"refused":      {func(n *ut.Names) { n.Become(ut.Refusing) }, http.StatusBadGateway},
		"silent":       {func(n *ut.Names) { n.Become(ut.Silent) }, http.StatusGatewayTimeout},
	} {
		t.Run(name, func(t *testing.T) {
			names := ut.NewNames(map[string][][]string{"registry.test": {{"127.0.0.1"}}})
			before := net.DefaultResolver
			net.DefaultResolver = names.Resolver()
			t.Cleanup(func() {
				net.DefaultResolver = before
				names.Become(ut.Refusing) // ends the look-ups that are still in progress
			})
			up := ut.New(t, ut.Options{})
			img := up.AddImage("library/app", "1", ut.NewImage(1, 10))
			_, port, _ := net.SplitHostPort(up.Host())
			hub := func(dial time.Duration) *upstream.Registry {
				return registry(t, "docker.io", "http://registry.test:"+port, func(c *upstream.Config) {
					c.AllowAddresses = []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")}
					c.Timeouts.Dial = dial
				})
			}
			m := newMirror(t, nil, hub(time.Minute))
			m.want(m.get(tagPath("1")), img.Index)
			up.Forget()
			tc.gone(names)
			const dial = 200 * time.Millisecond // it always fails
			m.restart(impatient, hub(dial))
			for range 3 {
				a := m.get(tagPath("1"))
				m.want(a, img.Index)
				if a.cache() != "cachalot; hit; detail=stale-if-error" {
					t.Errorf("Cache-Status %q", a.cache())
				}
			}
			m.restart(impatient, hub(dial)) // so that the first look-up is for content that is not stored
			m.wantError(m.get(tagPath("x")), tc.status, "UNAVAILABLE")
			m.get(tagPath("y"))
			asked := names.Asked()
			for i := range 5 {
				m.wantError(m.get(tagPath(fmt.Sprint("z", i))), http.StatusBadGateway, "UNAVAILABLE")
			}
			m.want(m.get(tagPath("1")), img.Index)
			if n := names.Asked() - asked; n != 0 {
				t.Errorf("%d more questions to the name server", n)
			}
			if asked == 0 || up.Count() != 0 {
				t.Errorf("%d questions to the name server, %d requests to the registry", asked, up.Count())
			}
		})
	}
}

// TestTokenServerGone: without its token server, a registry serves only stored tags. The
// mirror still sends requests, and the errors name the token server as the cause.
func TestTokenServerGone(t *testing.T) {
	t.Parallel()
	up := ut.New(t, ut.Options{Auth: ut.Bearer, TokenElsewhere: true})
	img := up.AddImage("library/app", "1", ut.NewImage(1, 10))
	m := newMirror(t, nil, registry(t, "docker.io", up.URL))
	m.want(m.get(tagPath("1")), img.Index)
	up.TokenDown()
	log := &bytes.Buffer{} // read it after m.stop, when all requests are logged
	m.log = slog.NewTextHandler(log, nil)
	m.restart(impatient, registry(t, "docker.io", up.URL))
	for range 3 {
		a := m.get(tagPath("1"))
		m.want(a, img.Index)
		if a.cache() != "cachalot; hit; detail=stale-if-error" {
			t.Errorf("Cache-Status %q", a.cache())
		}
	}
	for i := range 8 {
		up.Forget()
		a := m.get(tagPath(fmt.Sprint("x", i)))
		m.wantError(a, http.StatusBadGateway, "UNAVAILABLE")
		if !strings.Contains(string(a.body), "docker.io: token: ") || strings.Contains(string(a.body), up.TokenHost()) {
			t.Errorf("does not say that it is the token server, or where that is: %s", a.body)
		}
		if up.Count(ut.HeadManifest) == 0 {
			t.Errorf("%d: the registry was not asked", i)
		}
	}
	m.stop()
	if n := strings.Count(log.String(), "docker.io: token: upstream unavailable"); n != 8 || strings.Count(log.String(), up.TokenHost()) < n {
		t.Errorf("%d lines in the log, or they do not name the token server:\n%s", n, log)
	}
}
