package dind

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"os"
	"strings"
	"testing"
	"time"
)

// newAuthority makes a CA's certificate, as PEM.
func newAuthority(t *testing.T, name string) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

func TestAuthority(t *testing.T) {
	t.Parallel()
	const (
		tls     = "CACHALOT_MIRROR=https://mirror:5000"
		flag    = "--registry-mirror=https://mirror:5000"
		asks    = "dockerd asks https://mirror:5000 first for images of all registries, then the registry itself"
		build   = "new builders of docker buildx ask https://mirror:5000 first for images of well-known registries: " + buildxFile
		bundle  = "/etc/ssl/certs/ca-certificates.crt"
		added   = "CACHALOT_CA is trusted: it is added to " + bundle
		mine    = "/home/me/.config/cachalot/cachalot.crt"
		both    = "/home/me/.config/cachalot/ca-certificates.crt"
		byMe    = "CACHALOT_CA is trusted: SSL_CERT_FILE=" + both + " has it and the certificates of "
		myBuild = "new builders of docker buildx ask https://mirror:5000 first for images of well-known registries: /home/me/.docker/buildx/buildkitd.default.toml"
	)
	ca, system, second := newAuthority(t, "ours"), newAuthority(t, "system"), newAuthority(t, "second")
	toml := func(path string) map[string]string {
		return map[string]string{
			path: ca, defaultFile: `ca = ["` + path + `"]`, itselfFile: "server = \"https://mirror:5000\"\nca = [\"" + path + "\"]\n",
			buildxFile: "[registry.\"mirror:5000\"]\n  ca = [\"" + path + "\"]\n",
		}
	}
	with := func(files map[string]string, path, content string) map[string]string {
		files[path] = content
		return files
	}
	checkAll(t, []scene{
		{
			name: "text", env: []string{tls, "CACHALOT_CA=" + ca}, there: map[string]string{bundle: system}, wantArgs: []string{flag},
			wantFiles: with(toml(authorityFile), bundle, ca), wantLog: []string{asks, added, build},
		},
		{
			name: "a file", env: []string{tls, "CACHALOT_CA=/run/ca.pem"}, there: map[string]string{"/run/ca.pem": "# a comment\n" + ca, bundle: system}, wantArgs: []string{flag},
			wantFiles: with(toml(authorityFile), bundle, ca), wantLog: []string{asks, added, build},
		},
		{
			name: "two certificates, one trusted", env: []string{tls, "CACHALOT_CA=" + system + second}, there: map[string]string{bundle: "# comment\n" + system}, wantArgs: []string{flag},
			wantFiles: map[string]string{authorityFile: system + second, defaultFile: "ca = ", itselfFile: "ca = ", buildxFile: "ca = ", bundle: second}, wantLog: []string{asks, added, build},
		},
		{
			name: "trusted already", env: []string{tls, "CACHALOT_CA=" + ca}, there: map[string]string{bundle: system + ca}, wantArgs: []string{flag},
			wantFiles: toml(authorityFile), wantLog: []string{asks, build},
		},
		{
			name: "Alpine's bundle", env: []string{tls, "CACHALOT_CA=" + ca}, there: map[string]string{"/etc/ssl/cert.pem": system}, wantArgs: []string{flag},
			wantFiles: with(toml(authorityFile), "/etc/ssl/cert.pem", ca), wantLog: []string{asks, "CACHALOT_CA is trusted: it is added to /etc/ssl/cert.pem", build},
		},
		{
			name: "no bundle", env: []string{tls, "CACHALOT_CA=" + ca}, wantArgs: []string{flag},
			wantFiles: with(toml(authorityFile), bundle, ca), wantLog: []string{asks, added, build},
		},
		{
			name: "plain mirror", env: []string{"CACHALOT_CA=" + ca}, there: map[string]string{bundle: system}, wantArgs: []string{hubFlag},
			wantFiles: map[string]string{authorityFile: ca, bundle: ca, defaultFile: "", itselfFile: "server = \"http://mirror:5000\"\n", buildxFile: "http = true"},
			wantLog:   usual(added),
		},
		{
			name: "a user's bundle", env: []string{tls, "CACHALOT_CA=" + ca, "SSL_CERT_FILE=/mine.pem", "XDG_CONFIG_HOME=/xdg"}, there: map[string]string{"/mine.pem": strings.TrimSpace(system), bundle: ca}, wantArgs: []string{flag},
			wantEnv:   map[string]string{"SSL_CERT_FILE": "/xdg/cachalot/ca-certificates.crt"},
			wantFiles: with(toml(authorityFile), "/xdg/cachalot/ca-certificates.crt", system+ca),
			wantLog:   []string{asks, "CACHALOT_CA is trusted: SSL_CERT_FILE=/xdg/cachalot/ca-certificates.crt has it and the certificates of /mine.pem", build},
		},
		{
			name: "rootless", uid: 1000, env: []string{tls, "CACHALOT_CA=" + ca}, there: map[string]string{bundle: system}, wantArgs: []string{flag},
			wantEnv: map[string]string{"SSL_CERT_FILE": both},
			wantFiles: map[string]string{
				mine: ca, both: system + ca, "/home/me/.config/docker/certs.d/_default/hosts.toml": `ca = ["` + mine + `"]`,
				"/home/me/.config/docker/certs.d/mirror_5000_/hosts.toml": "", "/home/me/.docker/buildx/buildkitd.default.toml": mine,
			},
			wantLog: []string{asks, byMe + bundle, myBuild},
		},
		{
			name: "rootless, again", uid: 1000, env: []string{tls, "CACHALOT_CA=" + ca, "SSL_CERT_FILE=" + both}, there: map[string]string{bundle: system, both: system + ca}, wantArgs: []string{flag},
			wantLog: []string{asks, myBuild},
		},
		{
			name: "nowhere", env: []string{tls, "CACHALOT_CA=" + ca}, wantArgs: []string{flag},
			there:     map[string]string{"/usr/local": "a file", "/root/.config": "a file", "/etc/ssl": "a file"},
			wantFiles: map[string]string{defaultFile: "capabilities", itselfFile: "server = \"https://mirror:5000\"\n", buildxFile: ""},
			wantLog: []string{
				"warning: /root/.config/cachalot/cachalot.crt cannot be written, so hosts.toml and buildkitd.toml do not name CACHALOT_CA", asks,
				"warning: /root/.config/cachalot/ca-certificates.crt cannot be written, so dockerd does not trust CACHALOT_CA everywhere", build,
			},
		},
		{
			name: "a command", args: []string{"sh"}, env: []string{tls, "CACHALOT_CA=" + ca}, there: map[string]string{bundle: system}, wantArgs: []string{"sh"},
			wantFiles: map[string]string{authorityFile: ca, buildxFile: "ca = "}, wantLog: []string{build},
		},
	})
}

// The bundle keeps its content and has the certificate once, however often it is added.
func TestBundleIsAddedToOnce(t *testing.T) {
	t.Parallel()
	ca, system := newAuthority(t, "ours"), newAuthority(t, "system")
	const bundle = "/etc/ssl/certs/ca-certificates.crt"
	s := scene{env: []string{"CACHALOT_CA=" + ca}, there: map[string]string{bundle: strings.TrimSpace(system)}}
	in := s.input(t)
	for range 3 {
		plan, err := NewPlan(in)
		if err != nil {
			t.Fatal(err)
		}
		plan.probe = nil
		plan.do(t.Context(), in.Root, os.Stderr)
		got, err := in.Root.read(bundle)
		if err != nil || string(got) != system+ca {
			t.Fatalf("%v\n%s", err, got)
		}
		if pool := x509.NewCertPool(); !pool.AppendCertsFromPEM(got) || bytes.Count(got, []byte("BEGIN")) != 2 {
			t.Fatalf("bundle:\n%s", got)
		}
	}
}
