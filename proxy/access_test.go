package proxy

import (
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"testing"

	"github.com/cachalot-registry/cachalot/proxy/clients"
	"github.com/cachalot-registry/cachalot/upstream/upstreamtest"
)

// accessLog hands out the lines of a JSON log, one at a time.
type accessLog chan []byte

func (l accessLog) Write(p []byte) (int, error) {
	l <- append([]byte(nil), p...)
	return len(p), nil
}

// next is the line of the next request that has ended.
func (l accessLog) next(t *testing.T) map[string]any {
	t.Helper()
	for {
		select {
		case text := <-l:
			var line map[string]any
			if err := json.Unmarshal(text, &line); err != nil {
				t.Fatalf("%v: %s", err, text)
			}
			if line["msg"] == "request" {
				return line
			}
		case <-t.Context().Done():
			t.Fatal("no line")
		}
	}
}

func newLoggingMirror(t *testing.T, change func(*Config), up *upstreamtest.Registry) (*mirror, accessLog) {
	t.Helper()
	log := make(accessLog, 100)
	m := &mirror{t: t, dir: t.TempDir(), log: slog.NewJSONHandler(log, nil)}
	m.start(change, registry(t, "docker.io", up.URL))
	t.Cleanup(m.stop)
	return m, log
}

// An access line has the target, the response, the client and the outcome.
func TestAccessLine(t *testing.T) {
	t.Parallel()
	up := upstreamtest.New(t, upstreamtest.Options{})
	img := up.AddImage("library/app", "latest", upstreamtest.NewImage(1, 100_000))
	layer, index := img.Layers[0], img.Index.Digest.String()
	m, log := newLoggingMirror(t, nil, up)

	const none = "\x00" // the line has no such key
	agent := "docker/28.0.1 " + strings.Repeat("x", 300)
	m.get("/v2/", "User-Agent", clients.NodeUserAgent) // no line at this level
	for _, tc := range []struct {
		method, path string
		header       []string
		want         map[string]string
	}{
		{"GET", "/v2/app/manifests/latest", nil, map[string]string{
			"upstream": "docker.io", "repository": "library/app", "kind": "manifest", "reference": "latest", "digest": index,
			"result": "miss", "status": "200", "client": "127.0.0.1", "method": "GET", "error": none, "path": none,
		}},
		{"GET", "/v2/library/app/manifests/latest", []string{"User-Agent", agent}, map[string]string{
			"reference": "latest", "digest": index, "result": "hit", "user_agent": agent[:200] + "...",
		}},
		{"HEAD", "/v2/library/app/manifests/latest", nil, map[string]string{"method": "HEAD", "digest": index, "result": "hit"}},
		{"GET", "/v2/library/app/blobs/" + layer.Digest.String(), []string{"Range", "bytes=10-19"}, map[string]string{
			"kind": "blob", "reference": layer.Digest.String(), "digest": layer.Digest.String(), "status": "206", "result": "miss",
		}},
		{"GET", "/v2/library/app/tags/list", nil, map[string]string{"kind": "tags", "reference": "", "digest": none, "result": "miss"}},
		{"GET", "/v2/library/app/manifests/gone", nil, map[string]string{
			"reference": "gone", "digest": none, "result": "miss", "status": "404",
			"error": "docker.io: get_manifest: not found upstream (status 404): MANIFEST_UNKNOWN: manifest unknown",
		}},
		{"GET", "/v2/library/app/manifests/-bad", nil, map[string]string{
			"path": "/v2/library/app/manifests/-bad", "upstream": none, "status": "404", "error": "tags are letters, digits and . _ -, 128 characters at most",
		}},
		{"GET", "/v2/?secret=1", nil, map[string]string{"path": "/v2/", "status": "200"}},
		{"PUT", "/v2/library/app/manifests/latest", nil, map[string]string{"method": "PUT", "status": "405"}},
	} {
		a := m.do(tc.method, tc.path, tc.header...)
		line := log.next(t)
		for key, want := range tc.want {
			got, ok := line[key]
			if !ok {
				got = none
			}
			if text := toText(got); text != want {
				t.Errorf("%s %s: %s is %q, want %q", tc.method, tc.path, key, text, want)
			}
		}
		if got := toText(line["bytes"]); got != toText(float64(len(a.body))) {
			t.Errorf("%s %s: %s bytes, want %d", tc.method, tc.path, got, len(a.body))
		}
		if id := a.header.Get("X-Request-Id"); len(id) != 32 || line["request_id"] != id {
			t.Errorf("%s %s: id %v in the log, %q in the answer", tc.method, tc.path, line["request_id"], id)
		}
		first, whole := line["first_byte_seconds"].(float64), line["seconds"].(float64)
		if first <= 0 || whole < first {
			t.Errorf("%s %s: first byte after %v s, all after %v s", tc.method, tc.path, first, whole)
		}
		if a.status >= 400 && tc.method != "HEAD" && !strings.Contains(string(a.body), "(request "+a.header.Get("X-Request-Id")+")") {
			t.Errorf("%s %s: the error does not say its request: %s", tc.method, tc.path, a.body)
		}
	}
}

func toText(v any) string {
	if s, ok := v.(string); ok {
		return s
	}
	b, _ := json.Marshal(v) // v was decoded from JSON
	return string(b)
}

// The mirror takes over the client's request id if it is safe to repeat.
func TestRequestID(t *testing.T) {
	t.Parallel()
	m, log := newLoggingMirror(t, nil, upstreamtest.New(t, upstreamtest.Options{}))
	for given, kept := range map[string]bool{
		"abc": true, "4bf92f35-77b3.A:_+/=@": true, strings.Repeat("a", 128): true,
		"": false, strings.Repeat("a", 129): false, "a b": false, "a\"b": false, "$(id)": false, "ä": false, "a,b": false, "a;b": false,
	} {
		id := m.get("/v2/", "X-Request-Id", given).header.Get("X-Request-Id")
		if kept != (id == given) || len(id) < 3 {
			t.Errorf("%q became %q", given, id)
		}
		if line := log.next(t); line["request_id"] != id {
			t.Errorf("%q in the log is %v", given, line["request_id"])
		}
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, m.server.URL+"/v2/", http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	req.Header["X-Request-Id"] = []string{"one", "two"}
	resp, err := m.client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if id := resp.Header.Values("X-Request-Id"); len(id) != 1 || len(id[0]) != 32 {
		t.Errorf("two ids became %q", id)
	}
}

// The mirror sends the request id to the registry. It does not send it to a CDN or a token server.
func TestRequestIDUpstream(t *testing.T) {
	t.Parallel()
	up := upstreamtest.New(t, upstreamtest.Options{Auth: upstreamtest.Bearer, CDN: true, TokenElsewhere: true})
	img := up.AddImage("library/app", "latest", upstreamtest.NewImage(1, 1000))
	m, _ := newLoggingMirror(t, nil, up)
	for _, path := range []string{"manifests/latest", "blobs/" + img.Layers[0].Digest.String()} {
		if a := m.get("/v2/library/app/"+path, "X-Request-Id", "mine"); a.status != http.StatusOK {
			t.Fatal(a.status)
		}
	}
	seen := map[upstreamtest.Op]int{}
	for _, q := range up.Requests() {
		seen[q.Op]++
		want := "mine"
		if q.Op == upstreamtest.CDN || q.Op == upstreamtest.Token {
			want = ""
		}
		if got := q.Header.Get("X-Request-Id"); got != want {
			t.Errorf("the id sent with %s is %q, want %q", q.Op, got, want)
		}
	}
	for _, op := range []upstreamtest.Op{upstreamtest.Ping, upstreamtest.HeadManifest, upstreamtest.GetBlob, upstreamtest.CDN, upstreamtest.Token} {
		if seen[op] == 0 {
			t.Errorf("no %s upstream", op)
		}
	}
}

// All upstream requests of a fill have the id of the request that started the fill.
func TestRequestIDOfFill(t *testing.T) {
	t.Parallel()
	up := upstreamtest.New(t, upstreamtest.Options{})
	layer := up.AddImage("library/app", "latest", upstreamtest.NewImage(1, 300_000)).Layers[0]
	release := make(chan struct{})
	up.Fault(upstreamtest.Match{Op: upstreamtest.GetBlob, Times: 1}, upstreamtest.StallAfter(100_000, release), upstreamtest.CutAfter(200_000))
	m, log := newLoggingMirror(t, nil, up)
	path := "/v2/library/app/blobs/" + layer.Digest.String()
	first, err := m.begin(t.Context(), http.MethodGet, path, "X-Request-Id", "first")
	if err != nil {
		t.Fatal(err)
	}
	second, err := m.begin(t.Context(), http.MethodGet, path, "X-Request-Id", "second")
	if err != nil {
		t.Fatal(err)
	}
	first.Body.Close() // the fill continues under this request's id
	if line := log.next(t); line["request_id"] != "first" {
		t.Errorf("the line of who left: %v", line)
	}
	close(release)
	if n, err := io.Copy(io.Discard, second.Body); err != nil || n != layer.Size {
		t.Errorf("%d bytes, %v", n, err)
	}
	second.Body.Close()
	if line := log.next(t); line["request_id"] != "second" || line["result"] != "collapsed" {
		t.Errorf("the line of who stayed: %v", line)
	}
	asked := up.Select(upstreamtest.Match{Op: upstreamtest.GetBlob})
	if len(asked) != 2 {
		t.Errorf("%d requests upstream, want one and its resume", len(asked))
	}
	for _, q := range asked {
		if got := q.Header.Get("X-Request-Id"); got != "first" {
			t.Errorf("upstream was told %q", got)
		}
	}
}
