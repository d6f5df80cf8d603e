package node

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cachalot-registry/cachalot/proxy/clients"
	"github.com/cachalot-registry/cachalot/task"
)

// containerd is the machine's containerd as the kubelet uses it, by its CRI.
type containerd struct {
	root   string // where the machine's root folder is mounted
	socket string // of the CRI, below root
}

// criTimeout bounds each call. containerd answers a pull that fails within milliseconds.
const criTimeout = 20 * time.Second

// errNotRead: containerd has pulled, and read none of the folders.
var errNotRead = errors.New("containerd does not read the folder when Kubernetes pulls an image")

// proofPath begins the paths that containerd asks for once it has read a folder.
const proofPath = "/read-by-containerd/"

// reads returns the first of the folders whose hosts.toml files containerd reads. It returns
// [errNotRead] if it reads none, and another error if that cannot be known.
//
// It has containerd pull an image from this process, at a loopback address. In each folder, a
// file for that address names another path. The path that containerd asks for says which file
// it has read. containerd's configuration does not say so much: what its config_path means
// depends on its version, and on which of its parts pulls (containerd/containerd#12808).
func (c containerd) reads(ctx context.Context, folders []string) (string, error) {
	if err := c.exists(); err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(ctx, criTimeout)
	defer cancel()
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	var came atomic.Bool
	var read atomic.Int64 // the number of the folder; 0: none
	registry := &http.Server{
		ReadHeaderTimeout: criTimeout,
		ErrorLog:          slog.NewLogLogger(slog.DiscardHandler, slog.LevelError), // containerd may try TLS
		ConnState:         func(net.Conn, http.ConnState) { came.Store(true) },
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			for i := range folders {
				if strings.HasPrefix(r.URL.Path, folderPath(i)) {
					read.CompareAndSwap(0, int64(i+1))
				}
			}
			w.WriteHeader(http.StatusNotFound)
		}),
	}
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = task.Try("proof", func() error { return registry.Serve(l) }) // it ends by Close
	}()
	defer func() {
		_ = registry.Close() // the pull is over
		<-served
	}()

	address := l.Addr().String()
	var failed []error
	for i, dir := range folders {
		remove, err := c.offer(dir, address, folderPath(i))
		if err != nil {
			failed = append(failed, fmt.Errorf("write a file for the proof: %w", err))
			continue
		}
		defer remove()
	}
	if len(folders) > 0 && len(failed) == len(folders) {
		return "", errors.Join(failed...)
	}
	err = c.pull(ctx, fmt.Sprintf("%s/cachalot/proof:%d", address, time.Now().UnixNano()))
	switch i := read.Load(); {
	case i > 0:
		return folders[i-1], nil
	case came.Load(): // to the registry itself
		return "", errNotRead
	case err == nil:
		return "", errors.New("containerd says that it has pulled an image that does not exist")
	default:
		return "", err
	}
}

func folderPath(i int) string { return fmt.Sprintf("%s%d/", proofPath, i) }

// offer writes a hosts.toml for a registry's address that leads to a path there.
func (c containerd) offer(dir, address, path string) (remove func(), err error) {
	f, err := openFolder(filepath.Join(c.root, dir), "")
	if err != nil {
		return nil, err
	}
	name := clients.HostFolder(address)
	file := fmt.Sprintf("server = \"http://%s\"\n\n[host.\"http://%s%sv2\"]\n  capabilities = [\"pull\", \"resolve\"]\n  override_path = true\n", address, address, path)
	if err := f.write(name+"/hosts.toml", []byte(file), 0o644); err != nil {
		f.close()
		return nil, err
	}
	return func() {
		_ = f.root.RemoveAll(name) // the next start removes what is left: see sweep
		f.close()
	}, nil
}

// sweep removes the files that a killed process has left in a folder after [containerd.reads].
func (f *folder) sweep() {
	names, _ := f.names() // apply returns the error
	for _, name := range names {
		if f.isProof(name) {
			_ = f.root.RemoveAll(name)
		}
	}
}

// isProof reports whether a registry's folder is one of [containerd.reads], of this process or
// another one.
func (f *folder) isProof(name string) bool {
	content, _, err := f.read(name + "/hosts.toml")
	return err == nil && strings.Contains(string(content), proofPath)
}

// pull has containerd pull an image, as the kubelet does.
func (c containerd) pull(ctx context.Context, image string) error {
	return c.call(func(conn *grpc.ClientConn) error {
		_, err := cri.NewImageServiceClient(conn).PullImage(ctx, &cri.PullImageRequest{Image: &cri.ImageSpec{Image: image}})
		return err
	})
}

// version returns containerd's version, such as 2.1.4.
func (c containerd) version(ctx context.Context) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, criTimeout)
	defer cancel()
	var v *cri.VersionResponse
	err := c.call(func(conn *grpc.ClientConn) (err error) {
		v, err = cri.NewRuntimeServiceClient(conn).Version(ctx, &cri.VersionRequest{})
		return err
	})
	switch {
	case err != nil:
		return "", err
	case v.GetRuntimeName() != "containerd":
		return "", fmt.Errorf("%s is the socket of %s, which reads no hosts.toml; CRI-O reads what \"cachalot client podman\" prints", c.socket, v.GetRuntimeName())
	}
	return strings.TrimPrefix(v.GetRuntimeVersion(), "v"), nil
}

func (c containerd) call(f func(*grpc.ClientConn) error) error {
	if err := c.exists(); err != nil {
		return err
	}
	conn, err := grpc.NewClient("unix:"+c.path(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }() // the call is over
	err = f(conn)
	if status.Code(err) == codes.Unimplemented {
		return fmt.Errorf("the containerd at %s has no CRI, which Kubernetes needs; without Kubernetes, use --containerd none", c.socket)
	}
	if err != nil {
		return fmt.Errorf("ask containerd at %s: %w", c.socket, err)
	}
	return nil
}

// exists returns an error without a socket.
func (c containerd) exists() error {
	if _, err := os.Stat(c.path()); errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("there is no socket of containerd at %s; name it with --containerd, or use --containerd none", c.socket)
	}
	return nil
}

func (c containerd) path() string { return filepath.Join(c.root, c.socket) }

// started returns a text that changes when containerd starts, because it makes its socket then.
func (c containerd) started() string {
	info, err := os.Stat(c.path())
	if err != nil {
		return ""
	}
	return info.ModTime().String()
}
