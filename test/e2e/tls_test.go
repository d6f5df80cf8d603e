//go:build e2e

package e2e

import (
	"crypto/x509"
	"encoding/pem"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"
)

// TestTLS: a mirror that speaks TLS, with a CA of its own, which only what the
// command printed names.
func TestTLS(t *testing.T) {
	t.Parallel()
	for name, with := range map[string]func(*testing.T, *mirror) client{
		"docker29":   opened(dockerWithHosts),
		"containerd": opened(newContainerd),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			list := sources(t, ociTypes())
			m := &mirror{upstreams: upstreams(list)}
			m.certify(t)
			m.open(t, forEver)
			c := with(t, m)
			for _, from := range list {
				from.publish(from.one)
				check(t, c.pull(t, from.image()))
				c.holds(t, from.image(), from.one.Image)
			}
		})
	}
}

// certify gives the mirror, before it starts, a certificate for 127.0.0.1 that
// signs itself.
func (m *mirror) certify(t *testing.T) {
	t.Helper()
	server := httptest.NewTLSServer(http.NotFoundHandler()) // whose pair it is
	defer server.Close()
	key, err := x509.MarshalPKCS8PrivateKey(server.TLS.Certificates[0].PrivateKey)
	check(t, err)
	dir := t.TempDir()
	m.ca = filepath.Join(dir, "tls.crt")
	private := filepath.Join(dir, "tls.key")
	check(t, os.WriteFile(m.ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}), 0o600))
	check(t, os.WriteFile(private, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key}), 0o600))
	m.tls = "certificate: " + m.ca + ", key: " + private
}
