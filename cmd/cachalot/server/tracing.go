package server

import (
	"context"
	"fmt"
	"log/slog"
	"net/url"
	"strings"
	"sync/atomic"
	"time"

	"github.com/cachalot-registry/cachalot/cmd/cachalot/config"
	"github.com/go-logr/logr"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
)

// tracing sends spans to a collector. Nil: it is off.
type tracing struct {
	provider *sdktrace.TracerProvider
	exporter sdktrace.SpanExporter
}

// newTracing returns nil if neither the configuration nor the environment names a collector.
// The SDK itself reads the other variables of OpenTelemetry: headers, certificates, resource
// attributes, sampler.
func newTracing(ctx context.Context, cfg config.Tracing, b Build, lookup func(string) (string, bool), log *slog.Logger) (*tracing, error) {
	env := func(name string) string {
		v, _ := lookup(name)
		return v
	}
	named := env("OTEL_EXPORTER_OTLP_ENDPOINT") != "" || env("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") != ""
	if strings.EqualFold(env("OTEL_SDK_DISABLED"), "true") || cfg.Endpoint == "" && (!named || env("OTEL_TRACES_EXPORTER") == "none") {
		return nil, nil
	}
	for _, name := range []string{"OTEL_EXPORTER_OTLP_PROTOCOL", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"} {
		if v := env(name); v != "" && v != "http/protobuf" {
			log.Warn("traces are sent as http/protobuf; give the collector's port for that, usually 4318", "variable", name, "value", v)
		}
	}
	otel.SetLogger(logr.Discard()) // it logs variables that it cannot read, and they hold secrets
	options := []otlptracehttp.Option{otlptracehttp.WithRetry(otlptracehttp.RetryConfig{
		Enabled: true, InitialInterval: time.Second, MaxInterval: 5 * time.Second, MaxElapsedTime: 30 * time.Second,
	})}
	if cfg.Endpoint != "" {
		options = append(options, otlptracehttp.WithEndpointURL(tracesURL(cfg.Endpoint)))
	}
	exporter, err := otlptracehttp.New(ctx, options...)
	if err != nil {
		return nil, fmt.Errorf("set up tracing: %w", err)
	}
	described, err := resource.New(ctx, resource.WithTelemetrySDK(), resource.WithHost(),
		resource.WithAttributes(attribute.String("service.name", "cachalot"), attribute.String("service.version", b.Version)), resource.WithFromEnv())
	if err != nil {
		log.Warn("OTEL_RESOURCE_ATTRIBUTES is not sent in full to the collector")
	}
	limits := sdktrace.NewSpanLimits()
	limits.AttributeValueLengthLimit = 1024 // errors may be long
	t := &tracing{exporter: &reporting{SpanExporter: exporter, log: log}}
	settings := []sdktrace.TracerProviderOption{
		sdktrace.WithBatcher(t.exporter), // queues 2048 spans, and drops more
		sdktrace.WithResource(described), sdktrace.WithRawSpanLimits(limits),
	}
	if env("OTEL_TRACES_SAMPLER") == "" {
		settings = append(settings, sdktrace.WithSampler(sdktrace.ParentBased(sdktrace.TraceIDRatioBased(cfg.SampleRatio))))
	}
	t.provider = sdktrace.NewTracerProvider(settings...)
	return t, nil
}

// tracesURL returns the URL for traces (OTLP specification, "OTLP/HTTP Request"). It adds
// /v1/traces if endpoint does not have it.
func tracesURL(endpoint string) string {
	u, err := url.Parse(endpoint)
	if err != nil || strings.HasSuffix(u.Path, "/v1/traces") { // validate refuses a wrong URL
		return endpoint
	}
	return u.JoinPath("v1/traces").String()
}

func (t *tracing) tracer() trace.Tracer {
	if t == nil {
		return nil
	}
	return t.provider.Tracer("github.com/cachalot-registry/cachalot")
}

// close sends the remaining spans until the deadline of ctx, and for at least a second.
func (t *tracing) close(ctx context.Context, log *slog.Logger) {
	if t == nil {
		return
	}
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	if deadline, ok := ctx.Deadline(); ok && time.Until(deadline) > time.Second {
		var end context.CancelFunc
		last, end = context.WithDeadline(context.WithoutCancel(ctx), deadline)
		defer end()
	}
	if err := t.provider.Shutdown(last); err != nil {
		log.Warn("not all traces were sent", "error", err)
		_ = t.exporter.Shutdown(last) // aborts requests in progress
	}
}

// reporting logs failures, at most one a minute, and does not return them: the SDK would write
// them to stderr in a format of its own.
type reporting struct {
	sdktrace.SpanExporter
	log  *slog.Logger
	last atomic.Int64 // Unix nanoseconds of the last line
}

func (r *reporting) ExportSpans(ctx context.Context, spans []sdktrace.ReadOnlySpan) error {
	err := r.SpanExporter.ExportSpans(ctx, spans)
	if err == nil {
		return nil
	}
	if now, last := time.Now().UnixNano(), r.last.Load(); now-last > int64(time.Minute) && r.last.CompareAndSwap(last, now) {
		told, _, _ := strings.Cut(err.Error(), "body: ") // what follows may contain our headers
		r.log.Warn("cannot send traces; they are lost", "spans", len(spans), "error", strings.TrimRight(told, " (:"))
	}
	return nil
}
