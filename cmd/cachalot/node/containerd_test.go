package node

import (
	"context"
	"errors"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// runtime has the CRI of a containerd, and finds the files of a registry as containerd does.
// test/containerd has real ones.
type runtime struct {
	cri.UnimplementedRuntimeServiceServer
	cri.UnimplementedImageServiceServer

	name, version string
	root          string

	mu    sync.Mutex // guards folders
	reads []string   // the folders that it reads, in this order
	pulls int
}

func (r *runtime) Version(context.Context, *cri.VersionRequest) (*cri.VersionResponse, error) {
	return &cri.VersionResponse{RuntimeName: r.name, RuntimeVersion: r.version}, nil
}

// PullImage looks for an image at its registry, and at the hosts of its registry's file first.
func (r *runtime) PullImage(ctx context.Context, req *cri.PullImageRequest) (*cri.PullImageResponse, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.pulls++
	host, image, _ := strings.Cut(req.GetImage().GetImage(), "/")
	name, tag, _ := strings.Cut(image, ":")
	urls := []string{"http://" + host + "/v2"}
	for _, dir := range r.reads {
		file, err := os.ReadFile(filepath.Join(r.root, dir, strings.Replace(host, ":", "_", 1)+"_", "hosts.toml"))
		if err != nil {
			continue
		}
		hosts, err := parse(file)
		if err != nil {
			return nil, err
		}
		urls = append(hosts.hosts, urls...)
		break
	}
	for _, url := range urls {
		req, err := http.NewRequestWithContext(ctx, http.MethodHead, url+"/"+name+"/manifests/"+tag+"?ns="+host, http.NoBody)
		if err != nil {
			return nil, err
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return nil, err
		}
		_ = resp.Body.Close()
	}
	return nil, status.Error(codes.NotFound, "not found")
}

// read sets the folders that it reads, as after a start with another configuration.
func (r *runtime) read(folders ...string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.reads = folders
}

// startRuntime starts a runtime on a machine with a root folder of its own.
func startRuntime(t *testing.T, socket, name, version string, reads ...string) *runtime {
	t.Helper()
	root, err := os.MkdirTemp("", "node") //nolint:usetesting // short: the path of a socket has at most 107 bytes
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(root) })
	r := &runtime{name: name, version: version, root: root, reads: reads}
	path := filepath.Join(root, socket)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "unix", path)
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer()
	if name != "none" {
		cri.RegisterRuntimeServiceServer(s, r)
		cri.RegisterImageServiceServer(s, r)
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	t.Cleanup(func() {
		s.Stop()
		if err := <-served; err != nil && !errors.Is(err, grpc.ErrServerStopped) { // stopped before it began
			t.Error(err)
		}
	})
	return r
}

const (
	plainSocket = "/run/containerd/containerd.sock"
	certsD      = "/etc/containerd/certs.d"
)

// TestProve: the mirror is put into the folder that containerd reads, and nothing is left in
// others. If it reads none, the error says what to do.
func TestProve(t *testing.T) {
	t.Parallel()
	k3s := "/var/lib/rancher/k3s/agent/etc/containerd/certs.d"
	for name, tc := range map[string]struct {
		socket, name, version string
		reads                 []string
		exists                string // a folder that is there
		cfg                   Config
		dir, want             string // the folder, or the error
	}{
		"its folder":                {reads: []string{certsD}, dir: certsD},
		"the default of 2.2, split": {version: "v2.3.7", reads: []string{certsD, "/etc/docker/certs.d"}, dir: certsD},
		"the default of 2.2":        {version: "v2.4.2", reads: []string{splitPath}, dir: splitPath},
		"GKE's":                     {reads: []string{"/etc/containerd/hosts.d"}, exists: "/etc/containerd/hosts.d", dir: "/etc/containerd/hosts.d"},
		"K3s":                       {socket: "/run/k3s/containerd/containerd.sock", reads: []string{k3s}, dir: k3s},
		"RKE2": {
			socket: "/run/k3s/containerd/containerd.sock", exists: "/var/lib/rancher/rke2/agent/etc/containerd",
			reads: []string{"/var/lib/rancher/rke2/agent/etc/containerd/certs.d"}, dir: "/var/lib/rancher/rke2/agent/etc/containerd/certs.d",
		},
		"a named folder":  {cfg: Config{Dir: "/srv/certs.d"}, reads: []string{"/srv/certs.d"}, dir: "/srv/certs.d"},
		"a named socket":  {cfg: Config{Socket: "/srv/c.sock"}, socket: "/srv/c.sock", reads: []string{certsD}, dir: certsD},
		"none":            {want: "containerd 1.7.35, /etc/containerd/certs.d: containerd does not read the folder when Kubernetes pulls an image; write config_path = \"/etc/containerd/certs.d\" in the table [plugins.\"io.containerd.grpc.v1.cri\".registry] of /etc/containerd/config.toml, and restart containerd"},
		"none of 2":       {version: "v2.0.14", want: `[plugins."io.containerd.cri.v1.images".registry]`},
		"another one":     {reads: []string{"/srv/certs.d"}, want: "does not read the folder"},
		"an old K3s":      {socket: "/run/k3s/containerd/containerd.sock", want: "K3s reads it since January 2024"},
		"CRI-O":           {name: "cri-o", want: "is the socket of cri-o"},
		"no socket":       {cfg: Config{Socket: "/nowhere"}, want: "no socket of containerd at /nowhere; name it with --containerd"},
		"no CRI":          {name: "none", want: "the containerd at /run/containerd/containerd.sock has no CRI"},
		"another's named": {cfg: Config{Dir: "/srv/certs.d"}, reads: []string{certsD}, want: "/srv/certs.d: containerd does not read"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			or := func(s, other string) string {
				if s == "" {
					return other
				}
				return s
			}
			r := startRuntime(t, or(tc.socket, plainSocket), or(tc.name, "containerd"), or(tc.version, "v1.7.35"), tc.reads...)
			if tc.exists != "" {
				if err := os.MkdirAll(filepath.Join(r.root, tc.exists), 0o755); err != nil {
					t.Fatal(err)
				}
			}
			tc.cfg.Root = r.root
			tc.cfg.Socket = or(tc.cfg.Socket, or(tc.socket, plainSocket))
			n, log := newNode(t, tc.cfg)
			n.prove(t.Context())
			if tc.want != "" {
				if n.proof.err == nil || !strings.Contains(n.proof.err.Error(), tc.want) {
					t.Errorf("%v, want %q", n.proof.err, tc.want)
				}
				if err := n.Check(t.Context()); err == nil || !strings.Contains(log.String(), "the mirror is not used") {
					t.Errorf("%v\n%s", err, log)
				}
				if _, err := os.Stat(filepath.Join(r.root, certsD)); name == "no socket" && err == nil {
					t.Error("a folder is made for a containerd that is not there")
				}
				return
			}
			if n.proof.err != nil || n.dir != tc.dir {
				t.Fatalf("%s: %v, want %s", n.dir, n.proof.err, tc.dir)
			}
			n.put()
			if err := n.Check(t.Context()); err != nil {
				t.Error(err)
			}
			for file, content := range tree(t, r.root) {
				if strings.Contains(content, begin("apps.mirror")) && file != strings.TrimPrefix(tc.dir, "/")+"/_default/hosts.toml" || strings.Contains(content, proofPath) {
					t.Errorf("%s is left: %s", file, content)
				}
				if tc.dir != splitPath && strings.Contains(file, "certs.d:") {
					t.Errorf("%s is left", file)
				}
			}
			if err := n.end(); err != nil {
				t.Error(err)
			}
			for file := range tree(t, r.root) {
				if strings.Contains(file, "_default") || strings.Contains(file, "certs.d:") {
					t.Errorf("%s is left at the end", file)
				}
			}
		})
	}
}

// TestProve_Again: containerd is asked again when it has been started, and not at each tick. A
// folder that it reads no longer loses the mirror.
func TestProve_Again(t *testing.T) {
	t.Parallel()
	r := startRuntime(t, plainSocket, "containerd", "v2.4.2", splitPath)
	n, _ := newNode(t, Config{Root: r.root, Socket: plainSocket})
	for range 3 {
		n.prove(t.Context())
		n.put()
	}
	if n.dir != splitPath || r.pulls != 1 {
		t.Errorf("%s after %d pulls, want %s after 1", n.dir, r.pulls, splitPath)
	}
	r.read(certsD)
	now := n.proof.at
	if err := os.Chtimes(filepath.Join(r.root, plainSocket), now, now); err != nil {
		t.Fatal(err)
	}
	n.prove(t.Context())
	n.put()
	if n.dir != certsD || n.proof.err != nil {
		t.Errorf("%s, %v, want %s", n.dir, n.proof.err, certsD)
	}
	if err := n.Check(t.Context()); err != nil {
		t.Error(err)
	}
	if got := slices.Collect(keysWith(tree(t, r.root), "certs.d:")); len(got) > 0 {
		t.Errorf("left: %v", got)
	}
}

// TestConfigure: containerd's configuration gets config_path, and is restored where that does
// not help, and at the end.
func TestConfigure(t *testing.T) {
	t.Parallel()
	const file = "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".registry]\n  config_path = \"\"\n"
	for name, tc := range map[string]struct {
		file    string
		ignores bool // the new configuration changes nothing
		fails   bool // the restart
		want    string
	}{
		"a file":             {file: file},
		"no file":            {},
		"it does not help":   {file: file, ignores: true, want: "does not read the folder"},
		"systemd fails":      {file: file, fails: true, want: "restart containerd: no systemd"},
		"mirrors of its own": {file: "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".registry.mirrors.a]\n", want: "registry.mirrors"},
		"it is not readable": {file: "version: 2\n", want: settingsFile},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := startRuntime(t, plainSocket, "containerd", "v1.7.35")
			if tc.file != "" {
				put(t, r.root, settingsFile, tc.file, 0o640)
			}
			if err := os.MkdirAll(filepath.Join(r.root, certsD), 0o755); err != nil {
				t.Fatal(err)
			}
			before := tree(t, filepath.Join(r.root, "etc"))
			n, log := newNode(t, Config{Root: r.root, Socket: plainSocket, Configure: true})
			restarts := 0
			n.restart = func(context.Context) error {
				if restarts++; tc.fails {
					return errors.New("no systemd")
				}
				s, err := readSettings(r.root, "1.7.35")
				if err != nil {
					return err
				}
				r.read()
				if path, _ := subtable(s.values, "plugins", s.table, "registry")["config_path"].(string); path != "" && !tc.ignores {
					r.read(path)
				}
				return nil
			}
			// The startup probe of the same pod changes nothing.
			probe, _ := newNode(t, Config{Root: r.root, Socket: plainSocket, Configure: true})
			if err := probe.Check(t.Context()); err == nil {
				t.Error("containerd is said to read the folder")
			}
			sameTree(t, "after a check", tree(t, filepath.Join(r.root, "etc")), before)
			n.prove(t.Context())
			n.prove(t.Context())
			if tc.want != "" {
				if n.proof.err == nil || !strings.Contains(n.proof.err.Error(), tc.want) || restarts > 2 {
					t.Errorf("%v after %d restarts, want %q\n%s", n.proof.err, restarts, tc.want, log)
				}
				sameTree(t, "afterwards", tree(t, filepath.Join(r.root, "etc")), before)
				return
			}
			if n.proof.err != nil || restarts != 1 {
				t.Fatalf("%v after %d restarts\n%s", n.proof.err, restarts, log)
			}
			n.put()
			if err := n.Check(t.Context()); err != nil {
				t.Error(err)
			}
			if err := n.end(); err != nil {
				t.Error(err)
			}
			sameTree(t, "at the end", tree(t, filepath.Join(r.root, "etc")), before)
			if restarts != 1 {
				t.Errorf("%d restarts, want none at the end", restarts-1)
			}
		})
	}
}

// keysWith returns the keys that contain a text.
func keysWith(tree map[string]string, text string) func(func(string) bool) {
	return func(yield func(string) bool) {
		for k := range tree {
			if strings.Contains(k, text) && !yield(k) {
				return
			}
		}
	}
}
