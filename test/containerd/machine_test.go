package containerd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cachalot-registry/cachalot/test/cachalotd"
)

// folders are those that containerd, K3s and node have fixed paths for. Each machine has its own.
func folders() []string {
	return []string{"/etc/containerd", "/etc/cni", "/etc/docker", "/run/containerd", "/var/lib/containerd", "/var/lib/rancher", "/run/k3s"}
}

// machine is this one, with empty folders and a containerd.
type machine struct {
	*testing.T
	binary, socket string
	args           []string
	process        *exec.Cmd
	log            *os.File
}

// newMachine mounts empty folders until the test ends, and writes files.
func newMachine(t *testing.T, version string, files map[string]string) *machine {
	t.Helper()
	for _, dir := range folders() {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "mode=755"); err != nil {
			t.Fatalf("mount at %s: %v", dir, err)
		}
		t.Cleanup(func() {
			if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
				t.Errorf("unmount %s: %v", dir, err)
			}
		})
	}
	for path, content := range files {
		write(t, path, content)
	}
	log, err := os.Create(filepath.Join(t.TempDir(), "containerd.log"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if b, err := os.ReadFile(log.Name()); t.Failed() && err == nil {
			t.Logf("containerd's last words:\n%s", b[max(0, len(b)-4000):])
		}
		_ = log.Close()
	})
	return &machine{T: t, binary: filepath.Join(os.Getenv("CACHALOT_TEST_CONTAINERD"), version, "containerd"), socket: "/run/containerd/containerd.sock", log: log}
}

func write(t *testing.T, path, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil { //nolint:gosec // as on a machine
		t.Fatal(err)
	}
}

// start starts containerd, until the test ends.
func (m *machine) start() {
	m.Helper()
	m.process = exec.Command(m.binary, m.args...) //nolint:noctx // stopped by stop
	m.process.Stdout, m.process.Stderr = m.log, m.log
	m.process.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := m.process.Start(); err != nil {
		m.Fatal(err)
	}
	m.Cleanup(m.stop)
	m.eventually("containerd's CRI", func() error {
		return m.cri(func(ctx context.Context, conn *grpc.ClientConn) error {
			_, err := cri.NewRuntimeServiceClient(conn).Version(ctx, &cri.VersionRequest{})
			return err
		})
	})
}

func (m *machine) stop() {
	if m.process != nil {
		_ = m.process.Process.Signal(syscall.SIGTERM)
		_ = m.process.Wait() // it says nothing of its end
		m.process = nil
	}
}

func (m *machine) restart() {
	m.Helper()
	m.stop()
	m.start()
}

// cri calls containerd.
func (m *machine) cri(f func(context.Context, *grpc.ClientConn) error) error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	conn, err := grpc.NewClient("unix:"+m.socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer conn.Close()
	return f(ctx, conn)
}

// pull pulls an image as the kubelet does.
func (m *machine) pull(image string) error {
	return m.cri(func(ctx context.Context, conn *grpc.ClientConn) error {
		_, err := cri.NewImageServiceClient(conn).PullImage(ctx, &cri.PullImageRequest{Image: &cri.ImageSpec{Image: image}})
		return err
	})
}

// eventually waits until f returns nil.
func (m *machine) eventually(what string, f func() error) {
	m.Helper()
	ctx, cancel := context.WithTimeout(m.Context(), time.Minute)
	defer cancel()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		err := f()
		if err == nil {
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			m.Fatalf("%s: %v", what, err)
		}
	}
}

// origin is a registry with images that only the mirror can reach: its name is of no host.
type origin struct {
	mirror   string
	requests atomic.Int64
	images   int
	url      string
}

// originName is what clients call the registry (RFC 6761 section 6.4).
const originName = "registry.invalid"

func newOrigin(t *testing.T) *origin {
	t.Helper()
	o := &origin{}
	handler := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet {
			o.requests.Add(1)
		}
		handler.ServeHTTP(w, r)
	}))
	t.Cleanup(s.Close)
	o.url = s.URL
	o.mirror = cachalotd.Start(t, fmt.Sprintf("storage: {path: %q, min_free: 0}\nupstreams: {%s: {url: %q, allow_addresses: [127.0.0.0/8]}, docker.io: {}}\n", t.TempDir(), originName, s.URL)).URL
	return o
}

// image pushes a new image, and returns its name.
func (o *origin) image(t *testing.T) string {
	t.Helper()
	o.images++
	image, err := random.Image(2000, 2)
	if err != nil {
		t.Fatal(err)
	}
	path := fmt.Sprintf("library/app:%d", o.images)
	ref, err := name.ParseReference(strings.TrimPrefix(o.url, "http://") + "/" + path)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(ref, image); err != nil {
		t.Fatal(err)
	}
	return originName + "/" + path
}

// tree is all that is in the folders where node writes: contents by path.
func tree(t *testing.T) map[string]string {
	t.Helper()
	found := map[string]string{}
	for _, dir := range []string{"/etc/containerd", "/etc/docker", "/var/lib/rancher"} {
		err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			if found[path] = e.Type().String(); e.Type().IsRegular() {
				content, err := os.ReadFile(path)
				found[path] = string(content)
				return err
			}
			return nil
		})
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
	}
	return found
}
