package upstream

import (
	"context"
	"errors"
	"net/http"
	"strconv"
	"sync/atomic"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"
)

// tracer returns the tracer of the span in ctx; nil if that span is not recorded. So the
// first span of a trace decides for all, and without a trace this check is the only cost.
func tracer(ctx context.Context) trace.Tracer {
	span := trace.SpanFromContext(ctx)
	if !span.IsRecording() {
		return nil
	}
	return span.TracerProvider().Tracer("github.com/cachalot-registry/cachalot/upstream")
}

// sends is the context key of the counter of requests that one query takes.
type sends struct{}

// traceQuestion starts the span of a query. The spans of its requests are its children.
func (r *Registry) traceQuestion(ctx context.Context, q query) (context.Context, func(error)) {
	t := tracer(ctx)
	if t == nil {
		return ctx, func(error) {}
	}
	ctx, span := t.Start(ctx, q.op, trace.WithAttributes(
		attribute.String("cachalot.upstream", r.cfg.Name), attribute.String("cachalot.repository", q.repo),
		attribute.String("cachalot.range", q.header.Get("Range")),
	))
	return context.WithValue(ctx, sends{}, new(atomic.Int64)), func(err error) { endSpan(span, err) }
}

// traceRequest starts the span of one request, by OpenTelemetry's conventions for HTTP
// clients, but without the URL: it may be signed.
func (r *Registry) traceRequest(ctx context.Context, op string, req *http.Request) (context.Context, func(*http.Response, error)) {
	t := tracer(ctx)
	if t == nil {
		return ctx, func(*http.Response, error) {}
	}
	attributes := []attribute.KeyValue{
		attribute.String("http.request.method", req.Method), attribute.String("server.address", req.URL.Hostname()),
		attribute.String("url.scheme", req.URL.Scheme), attribute.String("cachalot.upstream", r.cfg.Name), attribute.String("cachalot.op", op),
	}
	if port, err := strconv.Atoi(req.URL.Port()); err == nil {
		attributes = append(attributes, attribute.Int("server.port", port))
	}
	if n, ok := ctx.Value(sends{}).(*atomic.Int64); ok && op != opToken && op != opPing {
		if before := n.Add(1) - 1; before > 0 {
			attributes = append(attributes, attribute.Int64("http.request.resend_count", before))
		}
	}
	ctx, span := t.Start(ctx, req.Method, trace.WithSpanKind(trace.SpanKindClient), trace.WithAttributes(attributes...))
	return ctx, func(resp *http.Response, err error) {
		if resp != nil {
			span.SetAttributes(attribute.Int("http.response.status_code", resp.StatusCode))
			if resp.StatusCode >= 400 {
				span.SetAttributes(attribute.String("error.type", strconv.Itoa(resp.StatusCode)))
				span.SetStatus(codes.Error, "")
			}
		}
		endSpan(span, err)
	}
}

func endSpan(span trace.Span, err error) {
	if err != nil && !errors.Is(err, context.Canceled) {
		span.SetStatus(codes.Error, err.Error())
	}
	span.End()
}

// passTrace tells the registry the trace of a request (W3C Trace Context), whether the
// trace is recorded here or only passed on.
func passTrace(ctx context.Context, h http.Header) {
	propagation.TraceContext{}.Inject(ctx, propagation.HeaderCarrier(h))
}
