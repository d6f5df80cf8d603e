package dind

import (
	"errors"
	"strings"
	"testing"
)

func TestWrongVariables(t *testing.T) {
	t.Parallel()
	key := "-----BEGIN PRIVATE KEY-----\nc2VjcmV0\n-----END PRIVATE KEY-----\n"
	ca := newAuthority(t, "ours")
	const (
		url   = "CACHALOT_MIRROR: write the mirror's URL, such as http://cachalot.example:5000"
		after = "CACHALOT_MIRROR: write the URL with nothing after host, port and path, such as http://cachalot.example:5000"
	)
	for _, tc := range []struct {
		name string
		env  []string
		want string
	}{
		{"no scheme", []string{"CACHALOT_MIRROR=mirror:5000"}, url},
		{"blank", []string{"CACHALOT_MIRROR= "}, url},
		{"host alone", []string{"CACHALOT_MIRROR=mirror"}, url},
		{"another scheme", []string{"CACHALOT_MIRROR=ftp://mirror"}, url},
		{"no host", []string{"CACHALOT_MIRROR=http://"}, url},
		{"bad port", []string{"CACHALOT_MIRROR=http://mirror:99999"}, url},
		{"a variable in it", []string{"CACHALOT_MIRROR=http://$MIRROR:5000"}, url},
		{"query", []string{"CACHALOT_MIRROR=http://mirror/?x"}, after},
		{"password", []string{"CACHALOT_MIRROR=http://me:secret@mirror"}, after},
		{"v2", []string{"CACHALOT_MIRROR=http://mirror/v2/"}, "CACHALOT_MIRROR: clients add /v2 themselves; leave it out"},
		{"direct", []string{"CACHALOT_DIRECT=quay.io https://a.example"}, `CACHALOT_DIRECT: "https://a.example" is not the name of a registry; write one such as quay.io`},
		{"direct, two", []string{"CACHALOT_DIRECT=a/b,B"}, "CACHALOT_DIRECT: \"a/b\" is not the name of a registry; write one such as quay.io\nCACHALOT_DIRECT: \"B\" is not the name of a registry; write one such as quay.io"},
		{"driver", []string{"CACHALOT_KEEP_DRIVER=yes"}, `CACHALOT_KEEP_DRIVER: "yes" is not known; write true or false`},
		{"CA is a word", []string{"CACHALOT_CA=ca.pem"}, "CACHALOT_CA: write certificates as PEM text, or the full path of their file"},
		{"no CA file", []string{"CACHALOT_CA=/no/ca.pem"}, "CACHALOT_CA: read /no/ca.pem: no such file or directory; the file must be in this container, or write the certificates as PEM text"},
		{"empty CA file", []string{"CACHALOT_CA=/empty"}, "CACHALOT_CA: no certificate in it; write PEM text with its line breaks"},
		{"CA in one line", []string{"CACHALOT_CA=" + strings.ReplaceAll(ca, "\n", `\n`)}, "CACHALOT_CA: no certificate in it; write PEM text with its line breaks"},
		{"a key", []string{"CACHALOT_CA=" + ca + key}, "CACHALOT_CA: it has a PRIVATE KEY; write certificates only"},
		{"CA garbled", []string{"CACHALOT_CA=-----BEGIN CERTIFICATE-----\nc2VjcmV0\n-----END CERTIFICATE-----\n"}, "CACHALOT_CA: a certificate in it cannot be read: x509: malformed certificate; copy it again, with its line breaks"},
		{
			"all at once",
			[]string{"CACHALOT_MIRROR=mirror", "CACHALOT_DIRECT=!", "CACHALOT_CA=x", "CACHALOT_KEEP_DRIVER=2"},
			url + "\nCACHALOT_DIRECT: \"!\" is not the name of a registry; write one such as quay.io" +
				"\nCACHALOT_CA: write certificates as PEM text, or the full path of their file\nCACHALOT_KEEP_DRIVER: \"2\" is not known; write true or false",
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			plan, err := NewPlan(scene{env: tc.env, there: map[string]string{"/empty": ""}}.input(t))
			if _, ok := errors.AsType[*VariableError](err); !ok || err.Error() != tc.want {
				t.Errorf("error:\n got %v\nwant %s", err, tc.want)
			}
			if plan.Files != nil {
				t.Errorf("%d files", len(plan.Files))
			}
		})
	}
}

func FuzzVariables(f *testing.F) {
	f.Add("http://mirror:5000/below", "quay.io,registry.example:5000", "gitlab.example:443")
	f.Add("https://[fd00::1]/", "docker.io", "https://index.docker.io/v1/")
	root := Root(f.TempDir())
	f.Fuzz(func(t *testing.T, mirror, direct, gitlab string) {
		in := Input{
			Env: []string{"CACHALOT_MIRROR=" + mirror, "CACHALOT_DIRECT=" + direct, "CI_REGISTRY=" + gitlab}, Home: "/root", Root: root, Registries: []string{hub},
		}
		plan, err := NewPlan(in)
		if err != nil {
			if _, ok := errors.AsType[*VariableError](err); !ok {
				t.Errorf("%v", err)
			}
			return
		}
		for _, file := range plan.Files {
			if strings.Contains(file.Path, "..") || strings.Contains(strings.TrimPrefix(file.Path, "/etc/docker/certs.d/"), "//") {
				t.Errorf("%q %q %q: %q", mirror, direct, gitlab, file.Path)
			}
		}
	})
}
