package storage

import (
	"context"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"
)

// traced begins the span of the fill, below that of the request that started it,
// where that is recorded. Further requests have a link to it: see follow.
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

// endSpan says what became of the fill.
func (f *fill) endSpan(span trace.Span) {
	if !span.IsRecording() {
		return
	}
	st := f.state()
	span.SetAttributes(attribute.Int64("cachalot.bytes", st.written), attribute.Bool("cachalot.spilled", st.phase == spilled))
	if st.phase == failed {
		span.SetStatus(codes.Error, st.err.Error())
	}
	span.End()
}

// resumedSpan notes a break in the span.
func resumedSpan(ctx context.Context, offset int64, cause error) {
	if span := trace.SpanFromContext(ctx); span.IsRecording() {
		span.AddEvent("resumed", trace.WithAttributes(attribute.Int64("cachalot.offset", offset), attribute.String("exception.message", cause.Error())))
	}
}

// follow links the span of a request that waits for the fill to the fill's.
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
