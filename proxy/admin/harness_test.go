package admin

import (
	"bufio"
	"bytes"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/cachalot-registry/cachalot/proxy"
	"github.com/cachalot-registry/cachalot/upstream"
)

// document is openapi.yaml, and the fields that responses had so far.
type document struct {
	doc      map[string]any
	compiler *jsonschema.Compiler

	mu   sync.Mutex          // guards the fields below; jsonschema compiles one at a time
	seen map[string]struct{} // Schema.field
}

func newDocument(tb testing.TB) *document {
	tb.Helper()
	b, err := yaml.YAMLToJSON(openAPI)
	if err != nil {
		tb.Fatal(err)
	}
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(b))
	if err != nil {
		tb.Fatal(err)
	}
	c := jsonschema.NewCompiler()
	c.DefaultDraft(jsonschema.Draft2020) // OpenAPI 3.1's
	c.AssertFormat()
	if err := c.AddResource("openapi.json", doc); err != nil {
		tb.Fatal(err)
	}
	return &document{doc: doc.(map[string]any), compiler: c, seen: map[string]struct{}{}}
}

// at follows keys into the document. It returns nil if a key is missing.
func (d *document) at(keys ...string) any {
	var v any = d.doc
	for _, k := range keys {
		m, ok := v.(map[string]any)
		if !ok {
			return nil
		}
		v = m[k]
	}
	return v
}

func pointer6901(key string) string {
	return strings.NewReplacer("~", "~0", "/", "~1").Replace(key)
}

// check compares a response with the document.
func (d *document) check(t *testing.T, method, path, status, mediaType string, body []byte) {
	t.Helper()
	d.mu.Lock()
	defer d.mu.Unlock()
	keys := []string{"paths", "/" + path, strings.ToLower(method), "responses", status}
	if d.at(keys...) == nil {
		if d.at(keys[:3]...) == nil && status >= "400" {
			keys = []string{"components", "responses", "Problem"} // the path is not an operation
		} else if keys[4] = "default"; status < "400" {
			t.Errorf("%s %s: the document has no status %s", method, path, status)
			return
		} else {
			keys = []string{"components", "responses", "Problem"}
		}
	}
	if status == "204" {
		return
	}
	keys = append(keys, "content", mediaType, "schema")
	schema := d.at(keys...)
	if schema == nil {
		t.Errorf("%s %s: the document has no %s for status %s", method, path, mediaType, status)
		return
	}
	if mediaType == "application/yaml" {
		return
	}
	location := "openapi.json#"
	for _, k := range keys {
		location += "/" + url.PathEscape(pointer6901(k))
	}
	compiled, err := d.compiler.Compile(location)
	if err != nil {
		t.Fatal(err)
	}
	v, err := jsonschema.UnmarshalJSON(bytes.NewReader(body))
	if err == nil {
		err = compiled.Validate(v)
	}
	if err != nil {
		t.Errorf("%s %s answers what the document does not say: %v\n%s", method, path, err, body)
		return
	}
	d.note("", schema, v)
}

// note records the fields of a response.
func (d *document) note(name string, schema, v any) {
	s, ok := schema.(map[string]any)
	if !ok {
		return
	}
	if ref, ok := s["$ref"].(string); ok {
		name = ref[strings.LastIndex(ref, "/")+1:]
		s, _ = d.at("components", "schemas", name).(map[string]any)
	}
	switch v := v.(type) {
	case map[string]any:
		properties, _ := s["properties"].(map[string]any)
		for field, value := range v {
			d.seen[name+"."+field] = struct{}{}
			d.note(name+"."+field, properties[field], value)
		}
	case []any:
		for _, item := range v {
			d.note(name, s["items"], item)
		}
	}
}

// admin is a mirror's admin listener.
type admin struct {
	t      *testing.T
	m      *mirror
	doc    *document
	server *httptest.Server
	log    *bytes.Buffer // audit lines; read it when no request is in progress
}

// newAdmin starts the admin listener; change may be nil. metrics are the upstreams'.
func newAdmin(t *testing.T, m *mirror, metrics *upstream.Metrics, change func(*Config)) *admin {
	t.Helper()
	reg := prometheus.NewRegistry()
	prefixed := prometheus.WrapRegistererWithPrefix("cachalot_", reg)
	prefixed.MustRegister(m.metrics)
	if metrics != nil {
		prefixed.MustRegister(metrics)
	}
	a := &admin{t: t, m: m, doc: newDocument(t), log: &bytes.Buffer{}}
	cfg := Config{
		Gatherer: reg, Ready: func() error { return nil }, Version: "v0", Started: time.Now(), Loopback: true,
		Current: func() (*proxy.Proxy, func()) { return m.proxy, func() {} }, Pins: m.pins,
		Token: func() (string, string, error) { return "admin.token", "", nil },
		Log:   slog.New(slog.NewJSONHandler(a.log, nil)),
	}
	if change != nil {
		change(&cfg)
	}
	a.server = httptest.NewServer(New(cfg))
	t.Cleanup(a.server.Close)
	return a
}

// ask sends a request and checks the response against the document. body is JSON, or "" for
// none. into may be nil.
func (a *admin) ask(method, path, body string, into any, header ...string) (status int) {
	a.t.Helper()
	req, err := http.NewRequestWithContext(a.t.Context(), method, a.server.URL+apiRoot+path, strings.NewReader(body))
	if err != nil {
		a.t.Fatal(err)
	}
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
		if header[i] == "Host" {
			req.Host = header[i+1]
		}
	}
	resp, err := a.server.Client().Do(req)
	if err != nil {
		a.t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		a.t.Fatal(err)
	}
	operation, _, _ := strings.Cut(path, "?")
	lines := [][]byte{b}
	if resp.Header.Get("Content-Type") == "application/x-ndjson" {
		lines = bytes.Split(bytes.TrimSpace(b), []byte("\n"))
	}
	for _, line := range lines {
		a.doc.check(a.t, method, operation, resp.Status[:3], resp.Header.Get("Content-Type"), line)
	}
	if into != nil && resp.StatusCode < 300 || into != nil && strings.HasSuffix(resp.Header.Get("Content-Type"), "problem+json") {
		if err := json.Unmarshal(lines[len(lines)-1], into); err != nil {
			a.t.Fatalf("%s %s: %v: %s", method, path, err, b)
		}
	}
	return resp.StatusCode
}

// get reads a resource that must exist.
func (a *admin) get(path string, into any) {
	a.t.Helper()
	var b json.RawMessage
	if status := a.ask(http.MethodGet, path, "", &b); status != http.StatusOK {
		a.t.Fatalf("GET %s: %d %s", path, status, b)
	}
	if err := json.Unmarshal(b, into); err != nil {
		a.t.Fatal(err)
	}
}

// post changes something; the response's status must be want.
func (a *admin) post(path, body string, want int, into any) {
	a.t.Helper()
	var b json.RawMessage
	if status := a.ask(http.MethodPost, path, body, &b); status != want {
		a.t.Fatalf("POST %s %s: %d, want %d: %s", path, body, status, want, b)
	}
	if into != nil {
		if err := json.Unmarshal(b, into); err != nil {
			a.t.Fatal(err)
		}
	}
}

// refused sends a request that must fail with this status and code.
func (a *admin) refused(method, path, body string, status int, code string, header ...string) Problem {
	a.t.Helper()
	var p Problem
	if got := a.ask(method, path, body, &p, header...); got != status || p.Code != code || p.Detail == "" || p.Status != status {
		a.t.Errorf("%s %s %s: %d %+v, want %d %s", method, path, body, got, p, status, code)
	}
	return p
}

// audits are the audit lines so far.
func (a *admin) audits() []map[string]any {
	a.t.Helper()
	a.server.Close() // handlers have ended, and have logged
	var all []map[string]any
	for lines := bufio.NewScanner(a.log); lines.Scan(); {
		var line struct {
			Msg   string         `json:"msg"`
			Audit map[string]any `json:"audit"`
		}
		if err := json.Unmarshal(lines.Bytes(), &line); err != nil {
			a.t.Fatal(err)
		}
		if line.Msg == "admin" {
			all = append(all, line.Audit)
		}
	}
	return all
}

func removeIndex(dir string) error { return os.RemoveAll(filepath.Join(dir, "index")) }
