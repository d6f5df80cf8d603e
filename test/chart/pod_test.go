package chart

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	core "k8s.io/api/core/v1"
)

// build builds the real cachalot once.
var build = sync.OnceValues(func() (string, error) { //nolint:gochecknoglobals // a binary for all tests, removed by TestMain
	dir, err := os.MkdirTemp("", "cachalot-chart")
	if err != nil {
		return "", err
	}
	built = filepath.Join(dir, "cachalot")
	out, err := exec.CommandContext(context.Background(), "go", "build", "-C", "../..", "-o", built, "./cmd/cachalot").CombinedOutput()
	if err != nil {
		return "", &exec.Error{Name: string(out), Err: err}
	}
	return built, nil
})

var built string //nolint:gochecknoglobals // see build

func TestMain(m *testing.M) {
	code := m.Run()
	if built != "" {
		_ = os.RemoveAll(filepath.Dir(built))
	}
	os.Exit(code)
}

func cachalot(t *testing.T) string {
	t.Helper()
	path, err := build()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// pod is the file system of a mirror's container, in a folder.
type pod struct {
	root      string
	container core.Container
	env       []string
}

// newPod does the kubelet's work: it writes ConfigMaps, the chart's Secrets, and for
// existing Secrets the keys that the configuration uses.
func newPod(t *testing.T, r rendered) pod {
	t.Helper()
	spec := statefulSet(t, r).Spec.Template.Spec
	p := pod{root: t.TempDir(), container: spec.Containers[0]}
	made := map[string]map[string]string{}
	for _, s := range all[*core.Secret](r) {
		made[s.Name] = map[string]string{}
		for k, v := range s.Data {
			made[s.Name][k] = string(v)
		}
	}
	volumes := map[string]core.Volume{}
	for _, v := range spec.Volumes {
		volumes[v.Name] = v
	}
	for _, m := range p.container.VolumeMounts {
		files := map[string]string{}
		switch v := volumes[m.Name]; {
		case v.ConfigMap != nil:
			files = named[*core.ConfigMap](t, r, v.ConfigMap.Name).Data
		case v.Secret != nil && made[v.Secret.SecretName] != nil:
			files = made[v.Secret.SecretName]
		case v.Secret != nil:
			for _, found := range regexp.MustCompile(regexp.QuoteMeta(m.MountPath)+`/([\w.-]+)`).FindAllStringSubmatch(config(t, r), -1) {
				files[found[1]] = secretFile(t, found[1])
			}
		}
		for name, content := range files {
			p.write(t, filepath.Join(m.MountPath, name), content)
		}
	}
	for _, e := range p.container.Env {
		if e.ValueFrom != nil {
			e.Value = "from elsewhere"
		}
		p.env = append(p.env, e.Name+"="+e.Value)
	}
	return p
}

// secretFile is what a key of a Secret would have, by its name.
func secretFile(t *testing.T, name string) string {
	t.Helper()
	switch filepath.Ext(name) {
	case ".crt", ".key":
		return certificate(t)
	case ".dockerconfigjson":
		return "{}"
	default:
		return "0123456789abcdef0123456789abcdef"
	}
}

// write writes a file at the container's path. Absolute paths in its content also point below root.
func (p pod) write(t *testing.T, path, content string) {
	t.Helper()
	for _, m := range p.container.VolumeMounts {
		content = strings.ReplaceAll(content, m.MountPath, filepath.Join(p.root, m.MountPath))
	}
	path = filepath.Join(p.root, path)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

// command runs cachalot with the container's environment.
func (p pod) command(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	for i, a := range args {
		if strings.HasPrefix(a, "/") {
			args[i] = filepath.Join(p.root, a)
		}
	}
	cmd := exec.CommandContext(t.Context(), cachalot(t), args...)
	cmd.Env = p.env
	return cmd
}

// certificate returns a certificate and its key.
var certificate = func() func(*testing.T) string { //nolint:gochecknoglobals // a constant that takes making
	once := sync.OnceValues(func() (string, error) {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return "", err
		}
		template := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{"mirror"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, NotAfter: time.Now().Add(time.Hour)}
		signed, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
		if err != nil {
			return "", err
		}
		private, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			return "", err
		}
		var b bytes.Buffer
		for kind, der := range map[string][]byte{"CERTIFICATE": signed, "PRIVATE KEY": private} {
			if err := pem.Encode(&b, &pem.Block{Type: kind, Bytes: der}); err != nil {
				return "", err
			}
		}
		return b.String(), nil
	})
	return func(t *testing.T) string {
		t.Helper()
		s, err := once()
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
}()

// TestConfigurations runs the real cachalot with its pods' configuration.
func TestConfigurations(t *testing.T) {
	for name, c := range choices() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPod(t, render(t, "mirror", c.values))
			out, err := p.command(t, "config", "check", p.container.Args[2]).CombinedOutput()
			if err != nil {
				t.Errorf("%v\n%s", err, out)
			}
		})
	}
}
