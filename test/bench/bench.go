package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// bench is one run.
type bench struct {
	dir       string // for all files; removed at the end
	cores     cores
	pairs     int
	during    time.Duration // the approximate time of a measurement of warm work
	divide    int           // reduces the content and the number of clients
	kinds     []kind        // cachalot first
	externals []external
	cachalot  string // the binary
	progress  io.Writer
	begin     time.Time
	notes     []string

	certificate, key string // files, for TLS
}

// say prints the progress.
func (b *bench) say(format string, args ...any) {
	_, _ = fmt.Fprintf(b.progress, "%5.0f s  %s\n", time.Since(b.begin).Seconds(), fmt.Sprintf(format, args...))
}

// note is say, and adds the text below the table.
func (b *bench) note(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	b.say("%s", text)
	b.notes = append(b.notes, text)
}

// speaksTLS returns nil if this cachalot has the configuration keys for TLS.
func (b *bench) speaksTLS(ctx context.Context) error {
	dir, err := os.MkdirTemp(b.dir, "config-")
	if err != nil {
		return err
	}
	file := filepath.Join(dir, "config.yml")
	if err := write(file, cachalotConfig(b, dir, "127.0.0.1:0", serverOptions{tls: true, upstream: "http://127.0.0.1:1"})); err != nil {
		return err
	}
	out, err := exec.CommandContext(ctx, b.cachalot, "config", "check", file).CombinedOutput()
	if err != nil {
		return fmt.Errorf("this cachalot does not take tls.certificate and tls.key: %s", strings.TrimSpace(strings.ReplaceAll(string(out), dir+"/", "")))
	}
	return nil
}

// writeCertificate makes a certificate for loopback with the usual kind of key.
func (b *bench) writeCertificate() error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return fmt.Errorf("make a key: %w", err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "bench"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return fmt.Errorf("make a certificate: %w", err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return fmt.Errorf("make a key: %w", err)
	}
	b.certificate, b.key = filepath.Join(b.dir, "certificate.pem"), filepath.Join(b.dir, "key.pem")
	return errors.Join(
		os.WriteFile(b.certificate, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600),
		os.WriteFile(b.key, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}), 0o600))
}
