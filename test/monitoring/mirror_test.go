package monitoring

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	ut "github.com/cachalot-registry/cachalot/upstream/upstreamtest"
)

// mirror is a running cachalot with its own disk.
type mirror struct {
	t      *testing.T
	cmd    *exec.Cmd
	url    string
	admin  string
	disk   string
	config string // the path
	log    string
	client *http.Client
}

const (
	mib       = 1 << 20
	diskSize  = 320 * mib // the index reserves 96 MiB of it
	maxSize   = 48 * mib
	minFree   = 80 * mib
	clients   = 50 // max_connections
	quotaSize = 60 // pulls that the upstream allows
)

func startMirror(t *testing.T, config string) *mirror {
	t.Helper()
	dir := t.TempDir()
	m := &mirror{
		t: t, disk: filepath.Join(dir, "disk"), config: filepath.Join(dir, "config.yml"), log: filepath.Join(dir, "log"),
		client: &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 4, TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}},
	}
	if err := os.Mkdir(m.disk, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", m.disk, "tmpfs", 0, fmt.Sprintf("size=%d", diskSize)); err != nil {
		t.Skipf("a full disk needs a file system of its own, and so root: mount: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(m.disk, 0); err != nil {
			t.Error(err)
		}
	})
	binary := filepath.Join(dir, "cachalot")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", binary, "../../cmd/cachalot").CombinedOutput(); err != nil {
		t.Fatalf("build cachalot: %v: %s", err, out)
	}
	certify(t, m.config, 24*time.Hour)
	config = fmt.Sprintf("listen: 127.0.0.1:0\nadmin: {listen: 127.0.0.1:0}\nmax_connections: %d\ntrusted_proxies: [127.0.0.1]\n"+
		"tls: {certificate: %[2]s.crt, key: %[2]s.key}\nstorage: {path: %[3]s, max_size: %[4]d, min_free: %[5]d}\n",
		clients, m.config, filepath.Join(m.disk, "cache"), maxSize, minFree) + config
	if err := os.WriteFile(m.config, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := os.Create(m.log)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = out.Close() }()
	m.cmd = exec.Command(binary, "serve", "--config", m.config) //nolint:noctx // killed by the test
	m.cmd.Stdout, m.cmd.Stderr = out, out
	m.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := m.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.kill)
	said := regexp.MustCompile(`registry_mirror=(\S+) admin=(\S+)`)
	await(t, 30*time.Second, "cachalot is ready", func() bool {
		b, err := os.ReadFile(m.log)
		if found := said.FindSubmatch(b); err == nil && found != nil {
			m.url, m.admin = string(found[1]), strings.TrimPrefix(string(found[2]), "http://")
		}
		return m.url != ""
	}, m.said)
	return m
}

// certify writes a certificate that signs itself, beside the configuration's file.
func certify(t *testing.T, config string, valid time.Duration) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(valid), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for suffix, block := range map[string]*pem.Block{".crt": {Type: "CERTIFICATE", Bytes: cert}, ".key": {Type: "PRIVATE KEY", Bytes: private}} {
		if err := os.WriteFile(config+suffix, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// startNode starts a machine that pulls through the mirror, and returns the address of its state.
func (m *mirror) startNode() string {
	m.t.Helper()
	address := ut.PortFor(m.t)
	cmd := exec.Command(m.cmd.Path, "node", "--mirror", m.url, "--config-path", m.t.TempDir(), "--containerd", "none", "--listen", address) //nolint:noctx // killed by the test
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		m.t.Fatal(err)
	}
	m.t.Cleanup(func() {
		_ = cmd.Process.Kill() // it has nothing to end
		_ = cmd.Wait()
	})
	return address
}

func (m *mirror) kill() {
	_ = m.cmd.Process.Kill() // it may have ended
	_ = m.cmd.Wait()
}

// said is the last part of the log.
func (m *mirror) said() string {
	b, err := os.ReadFile(m.log)
	if err != nil {
		return err.Error()
	}
	return string(b[max(0, len(b)-3000):])
}

// get reads a whole response. The metrics count its result.
func (m *mirror) get(ctx context.Context, path string) int {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, m.url+path, http.NoBody)
	if err != nil {
		m.t.Error(err)
		return 0
	}
	resp, err := m.client.Do(req)
	if err != nil {
		return 0 // the mirror was killed, or the chapter has ended
	}
	defer func() { _ = resp.Body.Close() }()
	_, _ = io.Copy(io.Discard, resp.Body) // it may break off
	return resp.StatusCode
}

// metrics returns the text of /metrics.
func (m *mirror) metrics() []byte {
	m.t.Helper()
	req, err := http.NewRequestWithContext(m.t.Context(), http.MethodGet, "http://"+m.admin+"/metrics", http.NoBody)
	if err != nil {
		m.t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		m.t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		m.t.Fatal(err)
	}
	return text
}

func blobPath(registry, repository string, c ut.Content) string {
	return "/" + registry + "/v2/" + repository + "/blobs/" + c.Digest.String()
}

// pull pulls an image as a client does, and reports whether that succeeded.
func (m *mirror) pull(ctx context.Context, registry, repository, tag string, img ut.Image) bool {
	at := "/" + registry + "/v2/" + repository + "/manifests/"
	for _, path := range []string{at + tag, at + img.Manifest.Digest.String()} {
		if m.get(ctx, path) != http.StatusOK {
			return false
		}
	}
	for _, b := range img.Blobs() {
		if m.get(ctx, blobPath(registry, repository, b)) != http.StatusOK {
			return false
		}
	}
	return true
}

// occupy keeps this many connections open until the test ends.
func (m *mirror) occupy(n int) {
	m.t.Helper()
	for range n {
		d := tls.Dialer{Config: &tls.Config{InsecureSkipVerify: true}}
		c, err := d.DialContext(m.t.Context(), "tcp", strings.TrimPrefix(m.url, "https://"))
		if err != nil {
			m.t.Fatal(err)
		}
		m.t.Cleanup(func() { _ = c.Close() })
		if _, err := fmt.Fprintf(c, "GET /v2/ HTTP/1.1\r\nHost: mirror\r\n\r\n"); err != nil {
			m.t.Fatal(err)
		}
	}
}

// every repeats do until stop is called. stop waits for the last call.
func every(pause time.Duration, do func(context.Context)) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		for tick := time.NewTicker(pause); ctx.Err() == nil; {
			do(ctx)
			select {
			case <-tick.C:
			case <-ctx.Done():
			}
		}
	})
	return func() {
		cancel()
		running.Wait()
	}
}
