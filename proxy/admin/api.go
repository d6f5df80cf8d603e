package admin

import (
	"context"
	_ "embed"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"mime"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/semaphore"

	"github.com/cachalot-registry/cachalot/bounds"
	"github.com/cachalot-registry/cachalot/proxy"
	"github.com/cachalot-registry/cachalot/storage"
	"github.com/cachalot-registry/cachalot/task"
	"github.com/gorilla/mux"
)

const (
	apiRoot = "/api/v1/"
	// maxRequest bounds a request's body: a thousand long image names fit.
	maxRequest  = 512 << 10
	defaultPage = 100
	maxPage     = storage.MostBlobs
	// maxStreams bounds the concurrent requests for warm and verify.
	maxStreams = 8
)

// openAPI describes the API; a test compares it with the responses.
//
//go:embed openapi.yaml
var openAPI []byte

// api serves /api/v1/.
type api struct {
	Config

	guard   *guard
	routes  []route
	router  *mux.Router
	streams chan struct{}       // one for each warm and verify that runs
	warming chan struct{}       // one for each download of a warm
	images  *semaphore.Weighted // one for each image that is warmed
	looking *semaphore.Weighted // one for each running GET image
	purging *semaphore.Weighted // one for each image that is purged
	verify  chan struct{}       // held by the running verification
}

// route is one operation.
type route struct {
	method, path string // below apiRoot
	changes      bool   // it needs the token, and leaves an audit line
	params       []string
	handle       func(*call) error
}

// call is one request to the API.
type call struct {
	*api

	p     *proxy.Proxy
	w     http.ResponseWriter
	r     *http.Request
	query url.Values
	audit audit
}

func newAPI(c Config, g *guard) *api {
	a := &api{
		Config: c, guard: g,
		streams: make(chan struct{}, maxStreams), warming: make(chan struct{}, maxWarming), verify: make(chan struct{}, 1),
		images: semaphore.NewWeighted(maxWarmImages), looking: semaphore.NewWeighted(maxLooking), purging: semaphore.NewWeighted(maxPurging),
	}
	a.routes = []route{
		{http.MethodGet, "openapi.yaml", false, nil, (*call).openAPI},
		{http.MethodGet, "stats", false, nil, (*call).stats},
		{http.MethodGet, "upstreams", false, nil, (*call).upstreams},
		{http.MethodGet, "repositories", false, []string{"upstream", "prefix", "sort", "limit", "cursor"}, (*call).repositories},
		{http.MethodGet, "tags", false, []string{"repository", "limit", "cursor"}, (*call).tags},
		{http.MethodGet, "blobs", false, []string{"upstream", "repository", "min_size", "unused_for", "sort", "limit", "cursor"}, (*call).blobs},
		{http.MethodGet, "blob", false, []string{"digest"}, (*call).blob},
		{http.MethodGet, "image", false, []string{"name"}, (*call).image},
		{http.MethodGet, "fills", false, nil, (*call).fills},
		{http.MethodGet, "pins", false, nil, (*call).pins},
		{http.MethodPost, "pins", true, nil, (*call).pin},
		{http.MethodDelete, "pins", true, []string{"match"}, (*call).unpin},
		{http.MethodPost, "purge", true, nil, (*call).purge},
		{http.MethodPost, "warm", true, nil, (*call).warm},
		{http.MethodPost, "verify", true, nil, (*call).verifyNow},
	}
	a.router = a.newRouter()
	return a
}

// newRouter registers each route with its method, and with HEAD too if that is GET.
func (a *api) newRouter() *mux.Router {
	m := mux.NewRouter()
	for _, rt := range a.routes {
		methods := []string{rt.method}
		if rt.method == http.MethodGet {
			methods = append(methods, http.MethodHead)
		}
		m.Path(apiRoot + rt.path).Methods(methods...).HandlerFunc(func(w http.ResponseWriter, r *http.Request) { a.serve(w, r, rt) })
	}
	m.MethodNotAllowedHandler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var allowed []string
		for _, rt := range a.routes {
			if r.URL.Path == apiRoot+rt.path {
				allowed = append(allowed, rt.method)
			}
		}
		w.Header().Set("Allow", strings.Join(allowed, ", "))
		_ = writeProblem(w, problemf(http.StatusMethodNotAllowed, "method_not_allowed", "use %s here", strings.Join(allowed, " or ")))
	})
	m.NotFoundHandler = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_ = writeProblem(w, problemf(http.StatusNotFound, "no_such_endpoint", "no such endpoint; %sopenapi.yaml lists them", apiRoot))
	})
	return m
}

func (a *api) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	a.router.ServeHTTP(w, r)
}

func (a *api) serve(w http.ResponseWriter, r *http.Request, rt route) {
	c := &call{api: a, w: w, r: r}
	defer func() { _ = http.NewResponseController(w).SetWriteDeadline(time.Time{}) }() // for the connection's next request
	var err error
	c.audit.token, err = a.guard.admit(w, r, rt.changes)
	if err == nil {
		var done func()
		if c.p, done = a.Current(); c.p == nil {
			err = problemf(http.StatusServiceUnavailable, "stopping", "cachalot is shutting down; ask again after its restart")
		} else {
			defer done()
			if c.query, err = params(r, rt.params); err == nil {
				err = task.Try("request to the admin API", func() error { return rt.handle(c) })
			}
		}
	}
	if err != nil {
		err = writeProblem(w, err)
	}
	if rt.changes {
		a.record(c, rt, err)
	}
}

// params parses the query. Unknown and repeated parameters are errors.
func params(r *http.Request, known []string) (url.Values, error) {
	q, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return nil, problemf(http.StatusBadRequest, "bad_query", "the query cannot be read: %v", err)
	}
	for _, name := range slices.Sorted(maps.Keys(q)) {
		switch {
		case !slices.Contains(known, name):
			message := "there are no parameters here"
			if len(known) > 0 {
				message = "the parameters here are " + strings.Join(known, ", ")
			}
			return nil, problemf(http.StatusBadRequest, "unknown_parameter", "%q is not known; %s", bounds.Text(name), message)
		case len(q[name]) > 1:
			return nil, problemf(http.StatusBadRequest, "unknown_parameter", "%s is given twice; keep one", name)
		}
	}
	return q, nil
}

// body reads the request's JSON.
func (c *call) body(into any) error {
	if t, _, err := mime.ParseMediaType(c.r.Header.Get("Content-Type")); err != nil || t != "application/json" {
		// A page of another site cannot send this without a preflight request (CORS).
		return problemf(http.StatusUnsupportedMediaType, "not_json", "send JSON, with Content-Type: application/json")
	}
	d := json.NewDecoder(http.MaxBytesReader(c.w, c.r.Body, maxRequest))
	d.DisallowUnknownFields()
	err := d.Decode(into)
	if err == nil {
		if _, err = d.Token(); errors.Is(err, io.EOF) {
			// A later read only notices that the client has left, and the response may take
			// long.
			_ = http.NewResponseController(c.w).SetReadDeadline(time.Time{}) // a server's writer has deadlines
			return nil
		}
		err = errors.New("there is more after the object")
	}
	if _, large := errors.AsType[*http.MaxBytesError](err); large {
		return problemf(http.StatusRequestEntityTooLarge, "too_large", "the body is longer than %d bytes; send several requests", maxRequest)
	}
	if errors.Is(err, io.EOF) {
		err = errors.New("it is empty")
	}
	return problemf(http.StatusBadRequest, "bad_body", "the body is wrong: %v", err)
}

// page returns the limit of a list's page, and the item after which it begins; "" for the first
// page.
func (c *call) page() (n int, after string, err error) {
	n = defaultPage
	if text := c.query.Get("limit"); text != "" {
		if n, err = strconv.Atoi(text); err != nil || n < 1 || n > maxPage {
			return 0, "", invalid("limit", "%q is not a number from 1 to %d", bounds.Text(text), maxPage)
		}
	}
	cursor, err := base64.RawURLEncoding.DecodeString(c.query.Get("cursor"))
	if err != nil {
		return 0, "", invalid("cursor", "send the value of next from the previous page, unchanged")
	}
	return n, string(cursor), nil
}

func toCursor(after string) string { return base64.RawURLEncoding.EncodeToString([]byte(after)) }

// age reads a duration, such as unused_for.
func age(name, text string) (time.Duration, error) {
	d, err := time.ParseDuration(text)
	if err != nil || d < 0 {
		return 0, invalid(name, "%q is not a duration; write one such as 720h", bounds.Text(text))
	}
	return d, nil
}

func (c *call) openAPI() error {
	c.w.Header().Set("Content-Type", "application/yaml")
	inTime(c.w)
	_, _ = c.w.Write(openAPI) // fails only if the client has left
	return nil
}

// sendTime is how long a client may take to read what is written to it: it must not delay the
// end of the process, or a reload.
const sendTime = 30 * time.Second

// inTime gives the client sendTime to read what is written next.
func inTime(w http.ResponseWriter) {
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(sendTime)) // a server's writer has deadlines
}

// answer writes a whole response.
func (c *call) answer(v any) error { return c.answerAs(http.StatusOK, v) }

func (c *call) answerAs(status int, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("write answer: %w", err)
	}
	c.w.Header().Set("Content-Type", "application/json")
	c.w.Header().Set("Content-Length", strconv.Itoa(len(b)+1))
	inTime(c.w)
	c.w.WriteHeader(status)
	_, _ = c.w.Write(append(b, '\n')) // fails only if the client has left
	return nil
}

// Problem is an error for people and programs (RFC 9457).
type Problem struct {
	Type   string `json:"type"`
	Title  string `json:"title"`
	Status int    `json:"status"`
	// Code identifies the kind of problem, and is stable.
	Code      string `json:"code"`
	Detail    string `json:"detail"`              // what to do
	Parameter string `json:"parameter,omitempty"` // that is wrong
}

func (p *Problem) Error() string { return p.Detail }

func problemf(status int, code, format string, args ...any) *Problem {
	return &Problem{Type: "about:blank", Title: http.StatusText(status), Status: status, Code: code, Detail: fmt.Sprintf(format, args...)}
}

// invalid returns the problem of an invalid value.
func invalid(parameter, format string, args ...any) *Problem {
	p := problemf(http.StatusUnprocessableEntity, "invalid", parameter+": "+format, args...)
	p.Parameter = parameter
	return p
}

// writeProblem is the one place that writes an error of the API. It returns what
// it wrote.
func writeProblem(w http.ResponseWriter, err error) error {
	p, ok := errors.AsType[*Problem](err)
	switch {
	case ok:
	case errors.Is(err, context.Canceled):
		p = problemf(proxy.StatusClientGone, "client_gone", "%v", err)
		p.Title = "Client Closed Request"
	default:
		p = problemf(http.StatusInternalServerError, "internal", "%v", err)
	}
	b, merr := json.Marshal(p)
	if merr != nil { // strings and numbers always marshal
		b = []byte("{}")
	}
	w.Header().Set("Content-Type", "application/problem+json")
	w.Header().Set("Content-Length", strconv.Itoa(len(b)+1))
	inTime(w)
	w.WriteHeader(p.Status)
	_, _ = w.Write(append(b, '\n')) // fails only if the client has left
	return p
}
