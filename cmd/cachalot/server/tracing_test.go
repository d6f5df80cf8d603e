package server

import (
	"context"
	"encoding/hex"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"
	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	otlp "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"

	"github.com/cachalot-registry/cachalot/cmd/cachalot/config"
	"github.com/cachalot-registry/cachalot/upstream/upstreamtest"
)

// receiver is a collector that records what it gets.
type receiver struct {
	url string

	mu      sync.Mutex // guards the fields below
	raw     []byte
	headers []http.Header
	paths   []string
	spans   []*otlp.Span
	service string
}

func newReceiver(t *testing.T, answer func(http.ResponseWriter, *http.Request)) *receiver {
	t.Helper()
	c := &receiver{}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		var got collector.ExportTraceServiceRequest
		if err == nil {
			err = proto.Unmarshal(body, &got)
		}
		if err != nil {
			t.Errorf("the collector got what it cannot read: %v", err)
		}
		c.mu.Lock()
		c.raw, c.headers, c.paths = append(c.raw, body...), append(c.headers, r.Header), append(c.paths, r.URL.Path)
		for _, rs := range got.GetResourceSpans() {
			for _, a := range rs.GetResource().GetAttributes() {
				if a.GetKey() == "service.name" {
					c.service = a.GetValue().GetStringValue()
				}
			}
			for _, ss := range rs.GetScopeSpans() {
				c.spans = append(c.spans, ss.GetSpans()...)
			}
		}
		c.mu.Unlock()
		if answer != nil {
			answer(w, r)
			return
		}
		w.Header().Set("Content-Type", "application/x-protobuf")
	}))
	t.Cleanup(s.Close)
	c.url = s.URL
	return c
}

// named returns the spans with this name.
func (c *receiver) named(name string) []*otlp.Span {
	c.mu.Lock()
	defer c.mu.Unlock()
	var list []*otlp.Span
	for _, s := range c.spans {
		if s.GetName() == name {
			list = append(list, s)
		}
	}
	return list
}

func attr(s *otlp.Span, key string) string {
	for _, a := range s.GetAttributes() {
		if a.GetKey() == key {
			if v := a.GetValue().GetStringValue(); v != "" {
				return v
			}
			return fmt.Sprint(a.GetValue().GetIntValue())
		}
	}
	return ""
}

// interrupt stops the mirror with a signal. It sends its last spans then.
func (r *running) interrupt(t *testing.T) time.Duration {
	t.Helper()
	began := time.Now()
	r.signals <- os.Interrupt
	if err := r.end(t); err != nil {
		t.Error(err)
	}
	return time.Since(began)
}

const (
	givenTrace  = "4bf92f3577b34da6a3ce929d0e0e4736"
	givenSpan   = "00f067aa0ba902b7"
	givenParent = "00-" + givenTrace + "-" + givenSpan + "-01"
)

// A download for many clients is one span. Its parent is the first client's request, its
// children are the upstream requests, and the other clients' spans link to it.
func TestTraceOfDownload(t *testing.T) {
	t.Parallel()
	c := newReceiver(t, nil)
	up := upstreamtest.New(t, upstreamtest.Options{Auth: upstreamtest.Bearer, TokenElsewhere: true, CDN: true})
	layer := up.AddImage("library/app", "latest", upstreamtest.NewImage(1, 300_000)).Layers[0]
	release := make(chan struct{})
	up.Fault(upstreamtest.Match{Op: upstreamtest.GetBlob, Times: 1}, upstreamtest.Status(http.StatusServiceUnavailable))
	up.Fault(upstreamtest.Match{Op: upstreamtest.CDN}, upstreamtest.StallAfter(100_000, release))
	r := start(t, "tracing: {endpoint: "+c.url+"}\n"+upstreams(up.URL))
	url := r.url + "/v2/library/app/blobs/" + layer.Digest.String()

	const waiting = 5
	bodies := make([]io.Reader, waiting)
	for i := range bodies {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			req.Header.Set("Traceparent", givenParent)
			req.Header.Set("Tracestate", "vendor=1")
		}
		resp, err := r.client.Do(req) // returns when the download has started
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		bodies[i] = resp.Body
	}
	close(release)
	for _, b := range bodies {
		if n, err := io.Copy(io.Discard, b); err != nil || n != layer.Size {
			t.Fatalf("%d bytes, %v", n, err)
		}
	}
	r.log.wait(t, `trace_id=`+givenTrace+` span_id=\w{16}`)
	r.interrupt(t)

	requests, fills := c.named("GET /v2/{name}/blobs/{digest}"), c.named("fill")
	if len(requests) != waiting || len(fills) != 1 || c.service != "cachalot" || c.paths[0] != "/v1/traces" {
		t.Fatalf("%d requests and %d fills of %q at %q", len(requests), len(fills), c.service, c.paths)
	}
	fill := fills[0]
	id := func(b []byte) string { return hex.EncodeToString(b) }
	links := 0
	for _, s := range requests {
		if id(s.GetTraceId()) == givenTrace {
			if id(s.GetParentSpanId()) != givenSpan || id(fill.GetParentSpanId()) != id(s.GetSpanId()) || len(s.GetLinks()) != 0 || s.GetTraceState() != "vendor=1" {
				t.Errorf("the request that began the download: %v; the download: %v", s, fill)
			}
		} else if len(s.GetLinks()) == 1 && id(s.GetLinks()[0].GetSpanId()) == id(fill.GetSpanId()) && id(s.GetLinks()[0].GetTraceId()) == givenTrace {
			links++
		}
		if attr(s, "cachalot.digest") != layer.Digest.String() || attr(s, "http.response.status_code") != "200" || s.GetKind() != otlp.Span_SPAN_KIND_SERVER {
			t.Errorf("a request: %v", s)
		}
	}
	if links != waiting-1 {
		t.Errorf("%d requests have a link to the download, want %d", links, waiting-1)
	}

	questions := c.named("get_blob")
	if len(questions) != 1 || id(questions[0].GetParentSpanId()) != id(fill.GetSpanId()) {
		t.Fatalf("the question: %v", questions)
	}
	var attempts, below []string
	for _, s := range c.named("GET") {
		if id(s.GetTraceId()) != givenTrace {
			t.Errorf("a request upstream in another trace: %v", s)
		}
		if attr(s, "cachalot.op") == "get_blob" {
			attempts = append(attempts, attr(s, "http.response.status_code")+"/"+attr(s, "http.request.resend_count"))
			below = append(below, id(s.GetSpanId()))
			if id(s.GetParentSpanId()) != id(questions[0].GetSpanId()) {
				t.Errorf("an attempt is not below its question: %v", s)
			}
		}
	}
	if got := strings.Join(attempts, " "); got != "503/ 307/1 200/2" {
		t.Errorf("attempts %s", got)
	}
	sent := 0
	for _, q := range up.Requests() {
		parent := q.Header.Get("Traceparent")
		switch q.Op {
		case upstreamtest.CDN, upstreamtest.Token:
			if parent != "" {
				t.Errorf("%s was told %s", q.Op, parent)
			}
		case upstreamtest.GetBlob:
			if want := "00-" + givenTrace + "-" + below[sent] + "-01"; parent != want || q.Header.Get("Tracestate") != "vendor=1" {
				t.Errorf("%s was told %s, want %s", q.Op, parent, want)
			}
			sent++
		}
	}
	if sent != 2 {
		t.Errorf("%d requests for the blob", sent)
	}
}

// Without a collector nothing is recorded, and a client's trace headers go upstream unchanged.
func TestTracingOff(t *testing.T) {
	t.Parallel()
	c := newReceiver(t, nil)
	up := upstreamtest.New(t, upstreamtest.Options{})
	up.AddImage("library/app", "latest", upstreamtest.NewImage(1, 1000))
	r := start(t, upstreams(up.URL))
	r.ask(t, r.url+"/v2/library/app/manifests/latest", "Traceparent", givenParent, "Tracestate", "vendor=1", "Baggage", "user=1")
	r.log.wait(t, `msg=request .* trace_id=`+givenTrace)
	r.ask(t, r.url+"/v2/library/app/manifests/other", "Traceparent", "00-nonsense-00-01")
	r.interrupt(t)
	asked := up.Select(upstreamtest.Match{Op: upstreamtest.HeadManifest})
	if len(asked) != 2 {
		t.Fatalf("%d requests upstream", len(asked))
	}
	if h := asked[0].Header; h.Get("Traceparent") != givenParent || h.Get("Tracestate") != "vendor=1" || h.Get("Baggage") != "" {
		t.Errorf("upstream was told %v", h)
	}
	if h := asked[1].Header; h.Get("Traceparent") != "" {
		t.Errorf("upstream was told of a trace that is none: %v", h)
	}
	if len(c.paths) > 0 {
		t.Error("a collector that nobody named was asked")
	}
}

// The ratio applies to traces that start here. Clients decide about their own.
func TestTracingSamples(t *testing.T) {
	t.Parallel()
	c := newReceiver(t, nil)
	up := upstreamtest.New(t, upstreamtest.Options{})
	r := start(t, "tracing: {endpoint: "+c.url+"/v1/traces, sample_ratio: 0}\n"+upstreams(up.URL))
	for range 20 {
		r.ask(t, r.url+"/v2/")
	}
	r.ask(t, r.url+"/v2/", "Traceparent", givenParent)
	r.ask(t, r.url+"/v2/", "Traceparent", strings.TrimSuffix(givenParent, "1")+"0")
	r.interrupt(t)
	if n := len(c.named("GET")); n != 1 {
		t.Errorf("%d spans, want the one of the client that wants it", n)
	}
}

// The time to the first byte has the trace that was recorded last as its exemplar.
func TestTraceExemplar(t *testing.T) {
	t.Parallel()
	c := newReceiver(t, nil)
	up := upstreamtest.New(t, upstreamtest.Options{})
	up.AddImage("library/app", "latest", upstreamtest.NewImage(1, 1000))
	r := start(t, "tracing: {endpoint: "+c.url+", sample_ratio: 0}\n"+upstreams(up.URL))
	url := r.url + "/v2/library/app/manifests/latest"
	exemplars := func() []string {
		t.Helper()
		r.read(t, r.url+"/v2/") // on the same connection: the one before has been counted by now
		_, body := r.scrape(t, "application/openmetrics-text;version=1.0.0")
		text, err := io.ReadAll(body)
		if err != nil {
			t.Fatal(err)
		}
		return regexp.MustCompile(`(?m)^cachalot_first_byte_seconds_bucket\{.*\} \d+ # \{(.*?)\}`).FindStringSubmatch(string(text))
	}
	r.ask(t, url, "Traceparent", strings.TrimSuffix(givenParent, "1")+"0")
	r.ask(t, url)
	if found := exemplars(); found != nil {
		t.Errorf("an exemplar of a trace that is not recorded: %q", found)
	}
	r.ask(t, url, "Traceparent", givenParent)
	if found := exemplars(); found == nil || found[1] != `trace_id="`+givenTrace+`"` {
		t.Errorf("exemplar %q, want the trace %s", found, givenTrace)
	}
}

// An unreachable collector slows no client, and delays the end of the process only by its timeout.
func TestTracingWithoutCollector(t *testing.T) {
	t.Parallel()
	var lc net.ListenConfig
	hole, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0") // never accepts
	if err != nil {
		t.Fatal(err)
	}
	defer hole.Close()
	up := upstreamtest.New(t, upstreamtest.Options{})
	up.AddImage("library/app", "latest", upstreamtest.NewImage(1, 1000))
	r := start(t, "shutdown_timeout: 2s\ntracing: {endpoint: 'http://"+hole.Addr().String()+"'}\n"+upstreams(up.URL))
	for range 3000 { // more than the queue holds
		if status, _ := r.read(t, r.url+"/v2/library/app/manifests/latest"); status != http.StatusOK {
			t.Fatal(status)
		}
	}
	if took := r.interrupt(t); took > 20*time.Second {
		t.Errorf("the end took %s", took)
	}
	r.log.wait(t, `level=WARN msg="not all traces were sent"`)
}

// The queue for a collector is bounded.
//
//nolint:paralleltest // it measures the heap, which other tests would fill
func TestTracingMemory(t *testing.T) {
	hole := newReceiver(t, func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	on, err := newTracing(t.Context(), config.Tracing{Endpoint: hole.url, SampleRatio: 1}, Build{}, noVariables, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	heap := func() uint64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before := heap()
	for range 200_000 { // 1 KiB each: 200 MiB
		_, span := on.tracer().Start(t.Context(), "x", trace.WithAttributes(attribute.String("k", strings.Repeat("v", 1000))))
		span.End()
	}
	if after := heap(); after > before+64<<20 {
		t.Errorf("%d MiB more", (after-before)>>20)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	on.close(ctx, slog.New(slog.DiscardHandler))
}

// The environment's variables apply if the file names no collector. Their secrets are not
// logged, even if the collector repeats them.
//
//nolint:paralleltest // it sets variables
func TestTracingFromEnvironment(t *testing.T) {
	c := newReceiver(t, func(w http.ResponseWriter, r *http.Request) {
		http.Error(w, "bad key "+r.Header.Get("X-Api-Key"), http.StatusUnauthorized)
	})
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", c.url)
	t.Setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-api-key=canary-otlp-key")
	t.Setenv("OTEL_SERVICE_NAME", "mirror")
	up := upstreamtest.New(t, upstreamtest.Options{})
	r := start(t, upstreams(up.URL))
	r.ask(t, r.url+"/v2/")
	r.interrupt(t)
	r.log.wait(t, `level=WARN msg="cannot send traces; they are lost" spans=1 error=".*401 Unauthorized"`)
	if text, _ := r.log.now(); strings.Contains(text, "canary-otlp-key") {
		t.Errorf("the key comes out: %s", text)
	}
	if len(c.headers) != 1 || c.headers[0].Get("X-Api-Key") != "canary-otlp-key" || c.service != "mirror" || c.paths[0] != "/v1/traces" {
		t.Errorf("the collector got %v of %s at %s", c.headers, c.service, c.paths)
	}
	for name, value := range map[string]string{"OTEL_SDK_DISABLED": "true", "OTEL_TRACES_EXPORTER": "none"} {
		lookup := func(n string) (string, bool) {
			if n == name {
				return value, true
			}
			return os.LookupEnv(n)
		}
		if on, err := newTracing(t.Context(), config.Tracing{}, Build{}, lookup, slog.New(slog.DiscardHandler)); on != nil || err != nil {
			t.Errorf("%s=%s: on, %v", name, value, err)
		}
	}
}

func noVariables(string) (string, bool) { return "", false }
