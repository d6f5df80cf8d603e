package proxy

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"slices"
	"syscall"
	"time"

	"github.com/opencontainers/go-digest"
	"go.opentelemetry.io/otel/trace"

	"github.com/cachalot-registry/cachalot/bounds"
	"github.com/cachalot-registry/cachalot/upstream"
)

// response records the result of a request, for the log and the metrics. It has ReadFrom,
// so that files are sent by sendfile.
type response struct {
	http.ResponseWriter
	target  target
	ctx     context.Context // the request's, with its id
	id      string
	values  []string   // of the header's fields: see set
	room    [8]string  // for values, of nearly all responses
	span    trace.Span // nil: not traced by the mirror
	traced  bool       // by the mirror or the client
	started time.Time
	secure  bool // over TLS: see inBulk

	wrote     bool // the header
	status    int
	bytes     int64
	firstByte time.Duration
	result    result
	digest    digest.Digest // of the content; "" for lists and errors
	stored    bool
	routine   bool  // a frequent check: its line is at debug level
	cut       error // why the body ended before its length
	err       error
}

var _ io.ReaderFrom = (*response)(nil)

// set sets a field of the header; the key is in canonical form. net/http's Set would check the
// key, and allocate a slice for the value: a twentieth of what a warm manifest takes.
func (w *response) set(key, value string) {
	if w.values == nil {
		w.values = w.room[:0]
	}
	n := len(w.values)
	w.values = append(w.values, value)
	w.Header()[key] = w.values[n : n+1 : n+1]
}

// Unwrap serves http.ResponseController.
func (w *response) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (w *response) WriteHeader(status int) {
	if !w.wrote {
		w.wrote, w.status, w.firstByte = true, status, time.Since(w.started)
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *response) Write(p []byte) (int, error) {
	if !w.wrote {
		w.WriteHeader(http.StatusOK)
	}
	n, err := w.ResponseWriter.Write(p)
	w.bytes += int64(n)
	return n, err
}

func (w *response) ReadFrom(src io.Reader) (int64, error) {
	if !w.wrote {
		w.WriteHeader(http.StatusOK)
	}
	dst := io.Writer(w.ResponseWriter)
	if !w.inBulk(src) {
		// net/http's ReadFrom would hold two buffers for each reader, because sendfile does
		// not work here, and send a body in memory apart from its header.
		dst = struct{ io.Writer }{dst}
	}
	part, limited := src.(*io.LimitedReader)
	if limited {
		if rest, ok := part.R.(*bytes.Reader); ok && int64(rest.Len()) == part.N {
			src, limited = rest, false // its WriteTo needs no buffer
		}
	}
	n, err := io.Copy(dst, src)
	w.bytes += n
	w.cut = err
	if limited && err == nil && part.N > 0 {
		w.cut = io.ErrUnexpectedEOF
	}
	return n, err
}

// inBulk reports whether the connection's ReadFrom is better for a body: for a file, and
// over TLS for all that is not in memory.
func (w *response) inBulk(src io.Reader) bool {
	if part, ok := src.(*io.LimitedReader); ok {
		src = part.R
	}
	switch src.(type) {
	case *os.File:
		return true
	case *bytes.Reader:
		return false
	default:
		return w.secure
	}
}

// cutByFile returns why the body of a stored file was cut, if the reason is the file and not
// the client: sendfile fails for either.
func (w *response) cutByFile() error {
	clients := []error{syscall.EPIPE, syscall.ECONNRESET, syscall.ETIMEDOUT, os.ErrDeadlineExceeded, net.ErrClosed}
	if w.ctx.Err() == nil && !slices.ContainsFunc(clients, func(err error) bool { return errors.Is(w.cut, err) }) {
		return w.cut
	}
	return nil
}

// setCacheStatus says what the cache did (RFC 9211).
func (w *response) setCacheStatus() {
	var s string
	switch w.result {
	case resultHit:
		s = "cachalot; hit"
	case resultRevalidated:
		s = "cachalot; fwd=stale; fwd-status=304"
	case resultMiss:
		s = "cachalot; fwd=miss"
		if w.stored {
			s += "; stored"
		}
	case resultCollapsed:
		s = "cachalot; fwd=miss; collapsed"
	case resultStale:
		s = "cachalot; hit; detail=stale-if-error"
	case resultNegative:
		s = "cachalot; hit; detail=negative"
	case resultDenied:
		s = "cachalot; fwd=miss; detail=denied"
	default:
		s = "cachalot; detail=error"
	}
	w.set("Cache-Status", s)
}

// maxUserAgent is how many bytes of a user agent are logged; dockerd's has some 140.
const maxUserAgent = 200

// finish counts and logs the request. It runs for each request, so it builds the line
// itself, to be fast.
func (p *Proxy) finish(w *response, r *http.Request) {
	took := time.Since(w.started)
	if w.span != nil {
		p.endSpan(w, r, w.started.Add(took))
	}
	kind, label := w.target.kind, p.label(w.target.registry)
	if kind != "" {
		p.metrics.requests.WithLabelValues(label, string(kind), string(w.result)).Inc()
		p.metrics.served.WithLabelValues(label, string(kind)).Add(float64(w.bytes))
		if w.wrote {
			p.metrics.observeFirstByte(w)
		}
	}
	p.metrics.inFlight.Add(-1)
	log := p.log.Handler()
	level := slog.LevelInfo
	if w.routine {
		level = slog.LevelDebug
	}
	if !log.Enabled(w.ctx, level) {
		return
	}
	line := slog.NewRecord(w.started.Add(took), level, "request", 0) // no source, which no handler writes and slog would look up
	var buf [20]slog.Attr                                            // large enough for all, so that they are copied once
	attrs := append(buf[:0],
		slog.String("method", r.Method), slog.String("client", p.client(r)), slog.String("user_agent", bounds.TextTo(r.UserAgent(), maxUserAgent)),
		slog.String("request_id", w.id), slog.Int("status", w.status), slog.Int64("bytes", w.bytes),
		slog.Float64("first_byte_seconds", w.firstByte.Seconds()), slog.Float64("seconds", took.Seconds()),
	)
	if w.target.registry != nil {
		attrs = append(attrs, slog.String("upstream", w.target.registry.Name()), slog.String("repository", w.target.repo),
			slog.String("kind", string(kind)), slog.String("reference", w.target.reference()), slog.String("result", string(w.result)))
		if w.digest != "" {
			attrs = append(attrs, slog.String("digest", string(w.digest)))
		}
	} else {
		attrs = append(attrs, slog.String("path", bounds.Text(r.URL.EscapedPath())))
	}
	if w.traced {
		attrs = w.traceAttrs(attrs)
	}
	if w.err != nil {
		attrs = append(attrs, slog.String("error", w.err.Error()))
	}
	line.AddAttrs(attrs...)
	_ = log.Handle(context.Background(), line) // an error cannot be logged
}

// label returns the registry's label in the metrics. Clients cannot create new labels.
func (p *Proxy) label(r *upstream.Registry) string {
	switch {
	case r == nil:
		return "unknown"
	case p.registries.isUnlisted(r):
		return upstream.UnlistedLabel
	default:
		return r.Name()
	}
}

func (t target) reference() string {
	switch {
	case t.tag != "":
		return t.tag
	case t.kind == upstream.KindTags:
		return ""
	default:
		return t.digest.String()
	}
}
