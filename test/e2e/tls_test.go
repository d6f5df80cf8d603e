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

// TestTLS: a mirror with TLS and its own CA. Clients know the CA only from the printed
// configuration.
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

// certify gives the mirror a self-signed certificate for 127.0.0.1 before it starts.
func (m *mirror) certify(t *testing.T) {
	t.Helper()
	server := httptest.NewTLSServer(http.NotFoundHandler()) // the source of the key pair
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
