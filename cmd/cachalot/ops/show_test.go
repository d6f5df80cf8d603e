package ops

import (
	"bytes"
	"encoding/json"
	"testing"
)

func TestSafe(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"docker.io/library/alpine": "docker.io/library/alpine",
		"\x1b]0;title\x07":         `\x1b]0;title\a`,
		"a\nb\tc\rd":               `a\nb\tc\rd`,
		"\u009b2J\u202eevil":       `\u009b2J\u202eevil`,
		"Käse 乳酪":                  "Käse 乳酪",
		"bad \xff byte":            "bad \uFFFD byte",
		"it's":                     "it's",
	} {
		if got := safe(text); got != want {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
	}
}

func TestSafeJSON(t *testing.T) {
	t.Parallel()
	text := "a\x1b\u009b\u202e\U000E0041ü\n"
	b, err := json.Marshal(text)
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := showJSON(&out, b); err != nil {
		t.Fatal(err)
	}
	if want := `"a\u001b\u009b\u202e\udb40\udc41ü\n"` + "\n"; out.String() != want {
		t.Errorf("%s, want %s", out.String(), want)
	}
	var back string
	if err := json.Unmarshal(out.Bytes(), &back); err != nil || back != text {
		t.Errorf("%q, %v", back, err)
	}
}
