package proxy

import (
	"log/slog"
	"net/http"
	"strconv"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"

	"github.com/cachalot-registry/cachalot/bounds"
	"github.com/cachalot-registry/cachalot/upstream"
)

// trace adds the request to its client's trace (W3C Trace Context), or starts one. Without
// a tracer, the client's trace is passed to the upstream unchanged.
func (p *Proxy) trace(w *response, r *http.Request) {
	if p.cfg.Tracer == nil && r.Header["Traceparent"] == nil {
		return
	}
	w.ctx = propagation.TraceContext{}.Extract(w.ctx, propagation.HeaderCarrier(r.Header))
	if p.cfg.Tracer != nil {
		w.ctx, w.span = p.cfg.Tracer.Start(w.ctx, r.Method, trace.WithSpanKind(trace.SpanKindServer), trace.WithTimestamp(w.started))
	}
	w.traced = trace.SpanContextFromContext(w.ctx).IsValid()
}

// route returns the pattern of a request's path, as OpenTelemetry's conventions define it.
func (t target) route() string {
	switch t.kind {
	case "":
		return ""
	case upstream.KindTags:
		return "/v2/{name}/tags/list"
	case upstream.KindManifest:
		return "/v2/{name}/manifests/{reference}"
	case upstream.KindBlob:
		return "/v2/{name}/blobs/{digest}"
	default:
		return "/v2/{name}/referrers/{digest}"
	}
}

// endSpan ends the span with the result of the request.
func (p *Proxy) endSpan(w *response, r *http.Request, ended time.Time) {
	if w.span.IsRecording() {
		w.span.SetAttributes(
			attribute.String("http.request.method", r.Method), attribute.Int("http.response.status_code", w.status),
			attribute.Int64("http.response.body.size", w.bytes), attribute.String("client.address", p.client(r)),
			attribute.String("user_agent.original", bounds.TextTo(r.UserAgent(), maxUserAgent)), attribute.String("url.path", bounds.Text(r.URL.EscapedPath())),
			attribute.String("cachalot.request_id", w.id), attribute.String("cachalot.result", string(w.result)),
			attribute.Float64("cachalot.first_byte_seconds", w.firstByte.Seconds()),
		)
		if w.target.registry != nil {
			w.span.SetName(r.Method + " " + w.target.route())
			w.span.SetAttributes(attribute.String("http.route", w.target.route()), attribute.String("cachalot.upstream", w.target.registry.Name()),
				attribute.String("cachalot.repository", w.target.repo), attribute.String("cachalot.reference", w.target.reference()))
		}
		if w.digest != "" {
			w.span.SetAttributes(attribute.String("cachalot.digest", string(w.digest)))
		}
		if w.err != nil {
			w.span.SetAttributes(attribute.String("exception.message", w.err.Error()))
		}
		if w.status >= 500 || w.err != nil && w.status < 400 { // a 4xx is the client's error, not the mirror's
			w.span.SetAttributes(attribute.String("error.type", strconv.Itoa(w.status)))
			w.span.SetStatus(codes.Error, "")
		}
	}
	w.span.End(trace.WithTimestamp(ended))
}

// traceAttrs adds the ids of the request's trace and span to a log line.
func (w *response) traceAttrs(attrs []slog.Attr) []slog.Attr {
	at := trace.SpanContextFromContext(w.ctx)
	return append(attrs, slog.String("trace_id", at.TraceID().String()), slog.String("span_id", at.SpanID().String()))
}
