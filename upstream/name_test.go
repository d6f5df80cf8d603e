package upstream

import (
	"net/url"
	"strings"
	"testing"

	"github.com/cachalot-registry/cachalot/hostport"
)

func TestCanonicalName(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]string{
		"docker.io":                "docker.io",
		"Docker.IO":                "docker.io",
		"docker.io.":               "docker.io",
		"docker.io:443":            "docker.io",
		"docker.io.:0443":          "docker.io",
		"index.docker.io":          "docker.io",
		"registry-1.docker.io:443": "docker.io",
		"registry.hub.docker.com":  "docker.io",
		"docker.io:5000":           "docker.io:5000",
		"corp.test:05000":          "corp.test:5000",
		"corp.test:000000005000":   "corp.test:5000",
		"corp.test:80":             "corp.test:80",
		"corp:5000":                "corp:5000",
		"corp:0443":                "corp:443",
		"localhost":                "localhost",
		"127.0.0.1:5000":           "127.0.0.1:5000",
		"xn--bcher-kva.example":    "xn--bcher-kva.example",

		"": "", "word": "", "docker..io": "", "docker.io..": "", ".docker.io": "", "-a.b": "", "a-.b": "", "a_b.c": "",
		"docker.io:": "", "docker.io:0": "", "docker.io:65536": "", "docker.io:+443": "", "docker.io:-1": "", "docker.io:4 4": "",
		"docker.io:443:443": "", "docker.io/": "", "a@docker.io": "", "[::1]:5000": "", "dоcker.io": "", "docker.io\x00": "", "doc\u212aer.io": "", strings.Repeat("a", 64) + ".b": "",
		strings.Repeat("a.", 127) + "b": "",
	} {
		got, ok := CanonicalName(name)
		if got != want || ok != (want != "") {
			t.Errorf("%q: %q, %v; want %q", name, got, ok, want)
		}
		if again, _ := CanonicalName(got); ok && again != got {
			t.Errorf("%q: %q, and of that %q", name, got, again)
		}
	}
}

func FuzzCanonicalName(f *testing.F) {
	for _, s := range []string{"docker.io", "Registry.Example.:0443", "127.1:5000", "[::1]:5000", "a:443"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, name string) {
		got, ok := CanonicalName(name)
		if !ok {
			return
		}
		if again, ok := CanonicalName(got); ok && again != got {
			t.Errorf("%q: %q, and of that %q", name, got, again)
		}
		if u, err := url.Parse("https://" + got); err != nil || u.Host != got || !hostport.IsRegistry(got) {
			t.Errorf("%q: https://%s is no URL, or images cannot name it: %v", name, got, err)
		}
	})
}
