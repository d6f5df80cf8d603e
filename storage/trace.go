package storage

import (
	"context"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"
)

// traced starts the span of the fill, below the span of the request that started it, if
// that is recorded. Other requests that wait for it get a link to it: see follow.
func (f *fill) traced(ctx context.Context) (context.Context, trace.Span) {
	parent := trace.SpanFromContext(ctx)
	if !parent.IsRecording() {
		return ctx, trace.SpanFromContext(context.Background()) // does nothing
	}
	ctx, span := parent.TracerProvider().Tracer("github.com/cachalot-registry/cachalot/storage").Start(ctx, "fill", trace.WithAttributes(
		attribute.String("cachalot.upstream", f.place.Upstream), attribute.String("cachalot.repository", f.place.Repository),
		attribute.String("cachalot.digest", f.digest.String()),
	))
	f.mu.Lock()
	defer f.mu.Unlock()
	f.span = span.SpanContext()
	return ctx, span
}

// endSpan ends the span with the fill's result.
func (f *fill) endSpan(span trace.Span) {
	if !span.IsRecording() {
		return
	}
	st := f.state()
	span.SetAttributes(attribute.Int64("cachalot.bytes", st.written), attribute.Bool("cachalot.passed_through", st.phase == passingThrough))
	if st.phase == failed {
		span.SetStatus(codes.Error, st.err.Error())
	}
	span.End()
}

// resumedSpan adds an event to the span: the download broke, and resumes.
func resumedSpan(ctx context.Context, offset int64, cause error) {
	if span := trace.SpanFromContext(ctx); span.IsRecording() {
		span.AddEvent("resumed", trace.WithAttributes(attribute.Int64("cachalot.offset", offset), attribute.String("exception.message", cause.Error())))
	}
}

// follow links the span of a waiting request to the span of the fill.
func (f *fill) follow(ctx context.Context) {
	waiting := trace.SpanFromContext(ctx)
	if !waiting.IsRecording() {
		return
	}
	f.mu.Lock()
	link := trace.Link{SpanContext: f.span}
	f.mu.Unlock()
	if link.SpanContext.IsValid() {
		waiting.AddLink(link)
	}
}
