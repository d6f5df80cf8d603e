package admin

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
)

// TestPins_File: pins survive a restart. An invalid file is moved aside.
func TestPins_File(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "pins.json")
	open := func() *Pins { return OpenPins(file, slog.New(slog.DiscardHandler)) }
	p := open()
	for _, want := range []bool{true, false} {
		if pin, added, err := p.add(Pin{Pattern: "u/r", Comment: fmt.Sprint(want)}); err != nil || added != want || pin.Comment != "true" {
			t.Error(pin, added, err)
		}
	}
	p = open()
	if pinned := p.Pinned(); pinned == nil || !pinned("u", "r") || pinned("u", "other") {
		t.Error("not pinned after a restart, or too much is")
	}
	for _, want := range []bool{true, false} {
		if removed, err := p.remove("u/r"); err != nil || removed != want {
			t.Error(removed, err)
		}
	}
	if p.Pinned() != nil || open().Pinned() != nil {
		t.Error("something is pinned still")
	}
	for _, text := range []string{"{", `{"version": 2}`, `[]`, ""} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if n := len(open().list()); n != 0 {
			t.Errorf("%q: %d pins", text, n)
		}
		if got, err := os.ReadFile(file + ".damaged"); err != nil || string(got) != text {
			t.Errorf("%q put aside as %q, %v", text, got, err)
		}
	}
	p = open()
	full := make([]Pin, mostPins)
	for n := range full {
		full[n] = Pin{Pattern: fmt.Sprintf("p%04d", n)}
	}
	p.patterns.Store(&full)
	if _, _, err := p.add(Pin{Pattern: "x"}); err == nil {
		t.Error("one too many")
	}
}

// TestPins_Tell: a listener learns what is pinned, by rules and at run time.
func TestPins_Tell(t *testing.T) {
	t.Parallel()
	p := OpenPins(filepath.Join(t.TempDir(), "pins.json"), slog.New(slog.DiscardHandler))
	var pinned func(upstream, repository string) bool
	told := 0
	p.Tell(func(now func(upstream, repository string) bool) { pinned, told = now, told+1 })
	if pinned != nil {
		t.Error("something is pinned at first")
	}
	want := func(rule, pin bool) {
		t.Helper()
		if rule != (pinned != nil && pinned("docker.io", "by/rule")) || pin != (pinned != nil && pinned("quay.io", "by/pin")) || pinned != nil && pinned("ghcr.io", "a/b") {
			t.Error("something else is pinned")
		}
	}
	p.SetRules(func(upstream, _ string) bool { return upstream == "docker.io" })
	want(true, false)
	if _, _, err := p.add(Pin{Pattern: "quay.io/by/*"}); err != nil {
		t.Fatal(err)
	}
	want(true, true)
	p.SetRules(nil)
	want(false, true)
	if _, err := p.remove("quay.io/by/*"); err != nil {
		t.Fatal(err)
	}
	want(false, false)
	if told != 5 || pinned != nil {
		t.Errorf("told %d times", told)
	}
	if _, err := p.remove("quay.io/by/*"); err != nil || told != 5 {
		t.Errorf("%v; told of what did not change", err)
	}
}
