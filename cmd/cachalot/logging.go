package main

import (
	"fmt"
	"io"
	"log/slog"
)

// newLogger writes to w in the configured format, from level on. The level may
// be moved while it is in use.
func newLogger(w io.Writer, format string, level *slog.LevelVar) *slog.Logger {
	opts := &slog.HandlerOptions{Level: level}
	if format == "json" {
		return slog.New(slog.NewJSONHandler(w, opts))
	}
	return slog.New(slog.NewTextHandler(w, opts))
}

// setLevel moves level to the one named in a checked configuration.
func setLevel(level *slog.LevelVar, name string) error {
	var l slog.Level
	if err := l.UnmarshalText([]byte(name)); err != nil {
		return fmt.Errorf("set log level: %w", err)
	}
	level.Set(l)
	return nil
}
