package server

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/cachalot-registry/cachalot/cmd/cachalot/config"
)

// writePair makes a self-signed certificate for 127.0.0.1, and its key.
func writePair(t *testing.T, cfg config.TLS, serial int64) *x509.CertPool {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: "mirror"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		IsCA: true, BasicConstraintsValid: true,
	}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	certPEM := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert})
	pool.AppendCertsFromPEM(certPEM)
	for name, content := range map[string][]byte{
		cfg.Certificate: certPEM, cfg.Key: pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}),
	} {
		if err := os.WriteFile(name, content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return pool
}

func pairFiles(t *testing.T) config.TLS {
	t.Helper()
	dir := t.TempDir()
	return config.TLS{Certificate: filepath.Join(dir, "tls.crt"), Key: filepath.Join(dir, "tls.key")}
}

func TestServeTLS(t *testing.T) {
	t.Parallel()
	cfg := pairFiles(t)
	pool := writePair(t, cfg, 1)
	r := start(t, "tls: {certificate: "+cfg.Certificate+", key: "+cfg.Key+"}\n")
	if !strings.HasPrefix(r.url, "https://127.0.0.1:") {
		t.Fatalf("the log says to use %s", r.url)
	}
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}, ForceAttemptHTTP2: true}
	t.Cleanup(transport.CloseIdleConnections)
	plain := r.client
	r.client = &http.Client{Transport: transport}
	if status, body := r.read(t, r.url+"/v2/"); status != http.StatusOK || body != "{}" {
		t.Errorf("/v2/: %d %q", status, body)
	}
	if _, body := r.read(t, r.url+"/"); !strings.Contains(body, r.url) {
		t.Error("the page does not name the mirror as https")
	}
	r.client = plain
	status, body := r.read(t, strings.Replace(r.url, "https", "http", 1)+"/v2/")
	if status != http.StatusBadRequest || !strings.Contains(body, "https://") {
		t.Errorf("plain HTTP is answered %d %q", status, body)
	}
	r.log.wait(t, `TLS handshake failed.*does not look like`)
}

// TestCertificateExpiry: the metric is the expiry of the certificate in use, also where no
// client has come since it was renewed. Without TLS there is none.
func TestCertificateExpiry(t *testing.T) {
	t.Parallel()
	cfg := pairFiles(t)
	synctest.Test(t, func(t *testing.T) {
		writePair(t, cfg, 1) // for an hour
		c, err := newCertificate(cfg, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		m := &metrics{registry: prometheus.NewRegistry()}
		m.watch(c)
		expires := func(want time.Time) {
			t.Helper()
			families, err := m.registry.Gather()
			if err != nil || len(families) != 1 {
				t.Fatalf("metrics %v, %v", families, err)
			}
			if got := int64(families[0].GetMetric()[0].GetGauge().GetValue()); got != want.Unix() {
				t.Errorf("it expires at %d, want %d", got, want.Unix())
			}
		}
		expires(time.Now().Add(time.Hour))
		time.Sleep(24 * time.Hour)
		writePair(t, cfg, 22)
		expires(time.Now().Add(time.Hour))
	})
	writePair(t, cfg, 333)
	const name = "cachalot_tls_certificate_expiry_timestamp_seconds "
	for settings, want := range map[string]bool{"": false, "tls: {certificate: " + cfg.Certificate + ", key: " + cfg.Key + "}\n": true} {
		r := start(t, settings)
		if _, text := r.read(t, r.admin+"/metrics"); strings.Contains(text, "\n"+name) != want {
			t.Errorf("with %q there is the metric: %v, want %v", settings, !want, want)
		}
	}
}

// TestCertificateRenewed: new files are used soon; invalid ones are not.
func TestCertificateRenewed(t *testing.T) {
	t.Parallel()
	cfg := pairFiles(t)
	writePair(t, cfg, 1)
	synctest.Test(t, func(t *testing.T) {
		c, err := newCertificate(cfg, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		serves := func(serial int64) {
			t.Helper()
			got, err := c.get(nil)
			if err != nil || got.Leaf.SerialNumber.Int64() != serial {
				t.Errorf("serves %v, %v; want the certificate with serial %d", got.Leaf.SerialNumber, err, serial)
			}
		}
		writePair(t, cfg, 22)
		serves(1)
		time.Sleep(lookAgain)
		serves(22)
		if err := os.WriteFile(cfg.Key, []byte("half a k"), 0o600); err != nil {
			t.Fatal(err)
		}
		time.Sleep(lookAgain)
		serves(22)
		if err := os.Remove(cfg.Certificate); err != nil {
			t.Fatal(err)
		}
		time.Sleep(lookAgain)
		serves(22)
		writePair(t, cfg, 333)
		time.Sleep(lookAgain)
		serves(333)
	})
}

// countingListener counts the writes to its connections.
type countingListener struct {
	net.Listener
	writes *atomic.Int64
}

type countingConn struct {
	net.Conn
	writes *atomic.Int64
}

func (l countingListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	return countingConn{c, l.writes}, err
}

func (c countingConn) Write(p []byte) (int, error) {
	c.writes.Add(1)
	return c.Conn.Write(p)
}

// serveTLS serves h. It returns a client, and the count of writes.
func serveTLS(t *testing.T, h http.Handler) (l *tlsListener, client *http.Client, url string, writes *atomic.Int64) {
	t.Helper()
	cfg := pairFiles(t)
	pool := writePair(t, cfg, 1)
	c, err := newCertificate(cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	inner, err := listen(t.Context(), "127.0.0.1:0", "listen")
	if err != nil {
		t.Fatal(err)
	}
	writes = new(atomic.Int64)
	l = newTLSListener(countingListener{inner, writes}, c)
	s := &http.Server{Handler: h}
	done := make(chan struct{})
	go func() { defer close(done); _ = s.Serve(l) }() // ends at Close
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}, DisableCompression: true}
	t.Cleanup(func() {
		transport.CloseIdleConnections()
		s.Close()
		<-done
	})
	return l, &http.Client{Transport: transport}, "https://" + inner.Addr().String(), writes
}

// TestTLSBulk: content goes out in large writes while bulk buffers are free. It is complete
// and correct in all cases.
func TestTLSBulk(t *testing.T) {
	t.Parallel()
	content := make([]byte, 10<<20+12345)
	if _, err := rand.Read(content); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "blob")
	if err := os.WriteFile(file, content, 0o600); err != nil {
		t.Fatal(err)
	}
	l, client, url, writes := serveTLS(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { http.ServeFile(w, r, file) }))
	get := func(span string) []byte {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Range", span)
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		got, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	get("bytes=0-0") // the handshake
	for span, want := range map[string][]byte{
		"bytes=0-": content, "bytes=100-5000099": content[100:5000100], "bytes=0-16383": content[:16384], "bytes=7-7": content[7:8],
	} {
		before := writes.Load()
		if !bytes.Equal(get(span), want) {
			t.Errorf("%s: not what was asked for", span)
		}
		if n, most := writes.Load()-before, int64(len(want))/bulkSize+4; n > most {
			t.Errorf("%s: %d writes for %d bytes; want at most %d", span, n, len(want), most)
		}
	}
	if len(l.bulk.places) != 0 {
		t.Errorf("%d buffers were not given back", len(l.bulk.places))
	}
	for range maxBulk {
		defer l.bulk.give(l.bulk.take())
	}
	if !bytes.Equal(get("bytes=0-"), content) {
		t.Error("without bulk buffers: not what was asked for")
	}
}

// TestTLSFlows: available bytes are sent before the source ends.
func TestTLSFlows(t *testing.T) {
	t.Parallel()
	src, sink := io.Pipe()
	first, again := strings.Repeat("1", 2000), strings.Repeat("2", 2000) // more than net/http sniffs
	_, client, url, _ := serveTLS(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", "4000")
		_, _ = w.(io.ReaderFrom).ReadFrom(src) // as io.Copy does
	}))
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	go func() { _, _ = io.WriteString(sink, first) }()
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	got := make([]byte, 2000)
	if _, err := io.ReadFull(resp.Body, got); err != nil || string(got) != first {
		t.Fatalf("%q, %v", got, err)
	}
	go func() { _, _ = io.WriteString(sink, again); sink.Close() }()
	if _, err := io.ReadFull(resp.Body, got); err != nil || string(got) != again {
		t.Fatalf("%q, %v", got, err)
	}
}

// TestTLS_OtherMessagesAreSent: TLS messages between two writes of content, such as a key
// update, are sent.
func TestTLS_OtherMessagesAreSent(t *testing.T) {
	t.Parallel()
	here, there := net.Pipe()
	defer here.Close()
	w := &wire{Conn: here}
	w.hold(make([]byte, 0, 100))
	for _, s := range []string{"one", "two"} {
		if _, err := w.Write([]byte(s)); err != nil {
			t.Fatal(err)
		}
	}
	go func() { _ = errors.Join(w.letGo(), here.Close()) }()
	got, err := io.ReadAll(there)
	if err != nil || string(got) != "onetwo" {
		t.Errorf("%q, %v", got, err)
	}
}

// TestTLSSilent: a client that sends no handshake is cut off at the header timeout.
func TestTLSSilent(t *testing.T) {
	t.Parallel()
	l, _, _, _ := serveTLS(t, http.NotFoundHandler())
	s := &http.Server{ReadHeaderTimeout: 50 * time.Millisecond, Handler: http.NotFoundHandler()}
	inner, err := listen(t.Context(), "127.0.0.1:0", "listen")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = s.Serve(&tlsListener{Listener: inner, config: l.config, log: l.log, bulk: l.bulk}) // ends at Close
	}()
	defer func() { s.Close(); <-done }()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	var d net.Dialer
	c, err := d.DialContext(ctx, "tcp", inner.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := io.ReadAll(c); err != nil {
		t.Error(err)
	}
}
