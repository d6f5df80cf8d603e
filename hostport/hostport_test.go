package hostport

import (
	"net/url"
	"strings"
	"testing"

	"github.com/distribution/reference"
)

// name returns a host name of n bytes, with labels of at most 49 bytes.
func name(n int) string { return strings.Repeat(strings.Repeat("a", 49)+".", 6)[:n-1] + "b" }

// what is the expected result for a string.
type what struct {
	canonical string // "": not a host
	inImage   bool   // valid in an image's name
	registry  bool   // as the first part of an image's name it names a registry
}

func TestParse(t *testing.T) {
	t.Parallel()
	const both = true
	long := strings.Repeat("a", maxLabel)
	for s, want := range map[string]what{
		// Names.
		"localhost":             {"localhost", true, both},
		"localhost:5000":        {"localhost:5000", true, both},
		"LOCALHOST":             {"localhost", true, false}, // docker takes it for part of a name, where capitals are invalid
		"a":                     {"a", true, false},
		"a-b":                   {"a-b", true, false},
		"0":                     {"0", true, false},
		"a:5":                   {"a:5", true, both},
		"a.b":                   {"a.b", true, both},
		"A.B":                   {"a.b", true, both},
		"a-b.c":                 {"a-b.c", true, both},
		"a--b.c":                {"a--b.c", true, both},
		"xn--bcher-kva.example": {"xn--bcher-kva.example", true, both},
		"127.1":                 {"127.1", true, both},
		"256.1.1.1":             {"256.1.1.1", true, both},
		// Underscores and trailing dots.
		"a_b": {"a_b", false, false}, "a_b:5": {"a_b:5", false, false}, "a_b.c": {"a_b.c", false, false}, "_a.b": {"_a.b", false, false}, "a.b_": {"a.b_", false, false},
		"a.": {"a", false, false}, "a.b.": {"a.b", false, false}, "a.b.:5": {"a.b:5", false, false}, "Registry.Example.:0443": {"registry.example:443", false, false},
		// Addresses.
		"1.2.3.4": {"1.2.3.4", true, both}, "1.2.3.4:5": {"1.2.3.4:5", true, both},
		"[::1]": {"[::1]", true, both}, "[::1]:5": {"[::1]:5", true, both}, "[2001:DB8::1]:5": {"[2001:db8::1]:5", true, both},
		"[::ffff:1.2.3.4]:5": {"[::ffff:1.2.3.4]:5", false, false},
		// Ports.
		"a:65535": {"a:65535", true, both}, "a.b:05": {"a.b:5", true, both}, "a.b:0000005": {"a.b:5", true, both},
		// Lengths.
		long + ".b": {long + ".b", true, both}, "b." + long: {"b." + long, true, both},
		name(253): {name(253), true, both}, name(253) + ":65535": {name(253) + ":65535", true, both}, name(253) + ".": {name(253), false, false},

		// Not hosts.
		"": {}, " ": {}, ".": {}, "..": {}, ".a.b": {}, "a..b": {}, "a.b..": {}, "-a.b": {}, "a-.b": {}, "a.-b": {}, "a.b-": {}, "-": {},
		"a:": {}, "a.b:": {}, "a:0": {}, "a.b:0": {}, "a:65536": {}, "a.b:+5": {}, "a.b:-5": {}, "a.b:x": {}, "a.b:5 ": {}, "a.b:5:6": {}, ":": {}, ":5": {},
		"::1": {}, "2001:db8::1": {}, "[::1": {}, "::1]": {}, "[]": {}, "[]:5": {}, "[::1]5": {}, "[::1].": {}, "[::1]:": {}, "[::1]:0": {}, "[:::::]:5": {}, "[[::1]]": {},
		"[fe80::1%eth0]": {}, "[fe80::1%25eth0]:5": {}, "[a.b]": {}, "[1.2.3.4]": {},
		"b\u00fccher.example": {}, "\u212a.io": {}, "a.b\x00": {}, "a.b\n": {}, "\xff.b": {},
		"*.a.b": {}, "a*b.c": {}, "a/b": {}, "a.b/c": {}, "a b": {}, "a.b ": {}, "a@b.c": {}, "u:p@a.b": {}, "a.b?x": {}, "a.b#x": {}, "a!b.c": {}, "a$b.c": {}, "a,b.c": {}, "a%41.b": {}, `a"b.c`: {}, `a\b.c`: {},
		"https://a.b": {}, long + "a.b": {}, name(254): {}, name(254) + ".": {}, name(254) + ":5": {},
	} {
		h, ok := Parse(s)
		var got what
		if ok {
			got = what{h.String(), h.InImage(), IsRegistry(s)}
		} else if IsRegistry(s) {
			t.Errorf("%q is a registry, and no host", s)
		}
		if got != want {
			t.Errorf("%q: %+v, want %+v", s, got, want)
		}
		holds(t, s)
	}
}

func TestNamesRegistry(t *testing.T) {
	t.Parallel()
	for first, want := range map[string]bool{
		"localhost": true, "a.b": true, "a:5": true, "[::1]:5": true, "a_b.c": true, ".": true, ":": true, "a.b.": true,
		"": false, "a": false, "library": false, "my-group": false, "a_b": false, "LOCALHOST": false,
	} {
		if got := NamesRegistry(first); got != want {
			t.Errorf("%q: %v", first, got)
		}
	}
}

// FuzzParse: a parsed host is valid in a URL, and a registry is valid as the domain of an
// image's name.
func FuzzParse(f *testing.F) {
	for _, s := range []string{"a.b", "A.B.:05", "[::1]:5", "[::ffff:1.2.3.4]", "a_b:5", "localhost", "a.b:5:6", "a..b", "[fe80::1%25eth0]", "::1", "\u212a.io"} {
		f.Add(s)
	}
	f.Fuzz(holds)
}

func holds(t *testing.T, s string) {
	t.Helper()
	h, ok := Parse(s)
	if !ok {
		return
	}
	if again, ok := Parse(h.String()); !ok || again != (Host{Name: h.Name, Port: h.Port}) {
		t.Errorf("%q: %+v, and of %s %+v", s, h, h, again)
	}
	for _, spelt := range []string{s, h.String()} {
		u, err := url.Parse("https://" + spelt + "/")
		if err != nil || u.Host != spelt || u.User != nil || !strings.EqualFold(strings.TrimSuffix(u.Hostname(), "."), h.Name) {
			t.Errorf("%q: %+v, and in a URL %v, %v", s, h, u, err)
		}
	}
	if ref, err := reference.Parse(s + "/a/b"); IsRegistry(s) {
		named, ok := ref.(reference.Named)
		if err != nil || !ok || reference.Domain(named) != s {
			t.Errorf("%q is no registry of images: %v, %v", s, ref, err)
		}
	}
}
