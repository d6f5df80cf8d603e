package server

import (
	"context"
	"fmt"
	"io"
	"log/slog"

	"go.opentelemetry.io/otel/trace"

	"github.com/cachalot-registry/cachalot/upstream"
)

// newLogger returns a logger that writes to w in the configured format, from level on. The
// level may change while it is in use.
func newLogger(w io.Writer, format string, level *slog.LevelVar) *slog.Logger {
	opts := &slog.HandlerOptions{Level: level}
	if format == "json" {
		return slog.New(attributed{slog.NewJSONHandler(w, opts)})
	}
	return slog.New(attributed{slog.NewTextHandler(w, opts)})
}

// attributed adds the ids of the client's request and its trace to a line, if the context has
// them.
type attributed struct{ slog.Handler }

func (h attributed) Handle(ctx context.Context, line slog.Record) error {
	if id := upstream.RequestID(ctx); id != "" {
		line.AddAttrs(slog.String("request_id", id))
	}
	if at := trace.SpanContextFromContext(ctx); at.IsValid() {
		line.AddAttrs(slog.String("trace_id", at.TraceID().String()), slog.String("span_id", at.SpanID().String()))
	}
	return h.Handler.Handle(ctx, line)
}

func (h attributed) WithAttrs(attrs []slog.Attr) slog.Handler {
	return attributed{h.Handler.WithAttrs(attrs)}
}

func (h attributed) WithGroup(name string) slog.Handler { return attributed{h.Handler.WithGroup(name)} }

// setLevel sets level to the one named in a checked configuration.
func setLevel(level *slog.LevelVar, name string) error {
	var l slog.Level
	if err := l.UnmarshalText([]byte(name)); err != nil {
		return fmt.Errorf("set log level: %w", err)
	}
	level.Set(l)
	return nil
}
