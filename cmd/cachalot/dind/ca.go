package dind

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
)

const (
	authorityFile = "/usr/local/share/ca-certificates/cachalot.crt" // update-ca-certificates keeps what is there
	bundleName    = "ca-certificates.crt"
	sslVariable   = "SSL_CERT_FILE"
)

// readAuthority reads certificates from a variable's value, which is PEM text or the path of a
// file. It returns only the certificates, as PEM.
func readAuthority(root Root, value string) ([]byte, error) {
	text := []byte(value)
	if !strings.Contains(value, "-----BEGIN") {
		path := strings.TrimSpace(value)
		if !filepath.IsAbs(path) {
			return nil, errors.New("write certificates as PEM text, or the full path of their file")
		}
		b, err := root.read(path)
		if err != nil {
			return nil, fmt.Errorf("%w; the file must be in this container, or write the certificates as PEM text", err)
		}
		text = b
	}
	certificates, err := parseCertificates(text)
	if err != nil {
		return nil, err
	}
	if len(certificates) == 0 {
		return nil, errors.New("no certificate in it; write PEM text with its line breaks")
	}
	return encode(certificates), nil
}

func parseCertificates(text []byte) ([]*x509.Certificate, error) {
	var certificates []*x509.Certificate
	for {
		block, rest := pem.Decode(text)
		if block == nil {
			return certificates, nil
		}
		if block.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("it has a %s; write certificates only", block.Type)
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("a certificate in it cannot be read: %w; copy it again, with its line breaks", err)
		}
		certificates = append(certificates, c)
		text = rest
	}
}

func encode(certificates []*x509.Certificate) []byte {
	var b bytes.Buffer
	for _, c := range certificates {
		b.Write(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw}))
	}
	return b.Bytes()
}

// missing returns the certificates that a bundle does not have. A bundle may have comments, and
// certificates that Go cannot read.
func missing(authority, bundle []byte) []byte {
	has := make(map[string]bool)
	for {
		block, rest := pem.Decode(bundle)
		if block == nil {
			break
		}
		has[string(block.Bytes)] = true
		bundle = rest
	}
	var b bytes.Buffer
	for {
		block, rest := pem.Decode(authority)
		if block == nil {
			return b.Bytes()
		}
		if !has[string(block.Bytes)] {
			b.Write(pem.EncodeToMemory(block))
		}
		authority = rest
	}
}

// systemBundles returns the files in which Go, and so dockerd, looks for certificates. It reads
// the first one that exists.
func systemBundles() []string {
	return []string{
		"/etc/ssl/certs/ca-certificates.crt",
		"/etc/pki/tls/certs/ca-bundle.crt",
		"/etc/ssl/ca-bundle.pem",
		"/etc/pki/tls/cacert.pem",
		"/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
		"/etc/ssl/cert.pem",
	}
}

// bundle returns the path and content of the certificate file that dockerd reads.
func (p *planner) bundle() (path string, content []byte) {
	paths := systemBundles()
	if set := p.env.get(sslVariable); set != "" {
		paths = []string{set}
	}
	for _, path := range paths {
		if b, err := p.in.Root.read(path); err == nil {
			return path, b
		}
	}
	return paths[0], nil
}

// keepAuthority plans to write the certificates to a file that hosts.toml and buildkitd.toml
// can name.
func (p *planner) keepAuthority() {
	if p.set.ca == nil {
		return
	}
	path := authorityFile
	if p.in.UID != 0 || !p.in.Root.writable(path) {
		path = filepath.Join(p.configHome(), "cachalot", filepath.Base(authorityFile))
	}
	if !p.write(path, p.set.ca, "so hosts.toml and buildkitd.toml do not name "+caVariable) {
		return
	}
	if p.set.mirror.Scheme == "https" {
		p.caFile = path
	}
}

// trustAuthority makes dockerd trust the certificates for all connections, because the classic
// image store does not read hosts.toml.
func (p *planner) trustAuthority() {
	if p.set.ca == nil {
		return
	}
	path, content := p.bundle()
	more := missing(p.set.ca, content)
	if len(more) == 0 {
		return
	}
	// A bundle that a user named belongs to the user, and may be mounted: it is not changed.
	if p.in.UID == 0 && p.env.get(sslVariable) == "" && p.in.Root.writable(path) {
		if len(content) > 0 && !bytes.HasSuffix(content, []byte("\n")) {
			more = append([]byte("\n"), more...)
		}
		p.plan.Files = append(p.plan.Files, File{Path: path, Content: more, Append: true})
		p.say("%s is trusted: it is added to %s", caVariable, path)
		return
	}
	combined := filepath.Join(p.configHome(), "cachalot", bundleName)
	if len(content) > 0 && !bytes.HasSuffix(content, []byte("\n")) {
		content = append(content, '\n')
	}
	if p.write(combined, append(content, more...), "so dockerd does not trust "+caVariable+" everywhere") {
		p.env = p.env.with(sslVariable, combined)
		p.say("%s is trusted: %s=%s has it and the certificates of %s", caVariable, sslVariable, combined, path)
	}
}
