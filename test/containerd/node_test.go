package containerd

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"github.com/cachalot-registry/cachalot/test/cachalotd"
)

func TestMain(m *testing.M) { cachalotd.Main(m) }

const (
	configFile = "/etc/containerd/config.toml"
	certsD     = "/etc/containerd/certs.d"
	// split is containerd's default from 2.2 on, of which it makes one folder.
	split = "/etc/containerd/certs.d:/etc/docker/certs.d"

	grpcTable   = "[plugins.'io.containerd.grpc.v1.cri'.registry]\n"
	imagesTable = "[plugins.'io.containerd.cri.v1.images'.registry]\n"
	onePath     = "config_path = '" + certsD + "'\n"
	k3s         = "/var/lib/rancher/k3s/agent/etc/containerd"
)

// form is a configuration of containerd.
type form struct {
	name  string
	files map[string]string
	args  []string
	since string // the first version that it is for
	until string // the last one
	reads string // the folder that it reads for Kubernetes; "": none
	mends bool   // what node says to do is done, and then it is read
	says  string // what node says to do otherwise
}

func forms() []form {
	main := func(content string) map[string]string { return map[string]string{configFile: content} }
	k3sConfig := "version = 2\n[grpc]\naddress = '/run/k3s/containerd/containerd.sock'\n[plugins.'io.containerd.grpc.v1.cri'.registry]\nconfig_path = '" + k3s + "/certs.d'\n"
	return []form{
		{name: "no file", until: "2.1.9", mends: true},
		{name: "no file", since: "2.2.9", reads: split},
		{name: "Debian's", files: main("version = 2\n[plugins]\n  [plugins.\"io.containerd.grpc.v1.cri\"]\n    [plugins.\"io.containerd.grpc.v1.cri\".cni]\n      bin_dir = \"/usr/lib/cni\"\n"), until: "2.1.9", mends: true},
		{name: "one folder, version 2", files: main("version = 2\n" + grpcTable + onePath), reads: certsD},
		{name: "one folder, version 3", files: main("version = 3\n" + imagesTable + onePath), since: "2.0.14", reads: certsD},
		{name: "two folders", files: main("version = 2\n" + grpcTable + "config_path = '" + split + "'\n"), until: "2.0.14", reads: certsD},
		{name: "two folders", files: main("version = 3\n" + imagesTable + "config_path = '" + split + "'\n"), since: "2.1.9", reads: split},
		// EKS' and kind's: such a containerd pulls by itself, and splits the list.
		{name: "unpacked layers are discarded", files: main("version = 2\n[plugins.'io.containerd.grpc.v1.cri'.containerd]\ndiscard_unpacked_layers = true\n"), since: "2.2.9", reads: certsD},
		{name: "local pull", files: main("version = 3\n[plugins.'io.containerd.cri.v1.images']\nuse_local_image_pull = true\n"), since: "2.2.9", reads: certsD},
		{name: "a drop-in", files: map[string]string{configFile: "version = 2\nimports = ['conf.d/*.toml']\n", "/etc/containerd/conf.d/a.toml": grpcTable + onePath}, reads: certsD},
		{name: "another folder", files: main("version = 2\n" + grpcTable + "config_path = '/srv/certs.d'\n"), says: `has config_path = "/srv/certs.d": name that folder with --config-path`},
		// GKE's.
		{name: "mirrors", files: main("version = 2\n[plugins.'io.containerd.grpc.v1.cri'.registry.mirrors.'docker.io']\nendpoint = ['https://mirror.invalid']\n"), says: "has registry.mirrors: move them to hosts.toml files"},
		{name: "K3s", files: map[string]string{k3s + "/config.toml": k3sConfig}, args: []string{"--config", k3s + "/config.toml", "--root", "/run/k3s/root", "--state", "/run/k3s/state"}, reads: k3s + "/certs.d"},
	}
}

// TestNode: node says that the mirror is used where it is, and why not where it is not: a pull
// by CRI shows which is true. Done what it says, the mirror is used. At its end all files are
// what they were.
func TestNode(t *testing.T) {
	if os.Getenv("CACHALOT_TEST_CONTAINERD") == "" {
		t.Skip("CACHALOT_TEST_CONTAINERD is not set; test/containerd/run builds the containerds and sets it")
	}
	o := newOrigin(t)
	for version := range strings.FieldsSeq(os.Getenv("CACHALOT_TEST_VERSIONS")) {
		for _, f := range forms() {
			if f.since != "" && version < f.since || f.until != "" && version > f.until {
				continue
			}
			t.Run(version+"/"+f.name, func(t *testing.T) { testNode(t, o, version, f) })
		}
	}
}

func testNode(t *testing.T, o *origin, version string, f form) { //nolint:thelper // a test itself
	m := newMachine(t, version, f.files)
	if m.args = f.args; f.args != nil {
		m.socket = "/run/k3s/containerd/containerd.sock"
	}
	m.start()
	dir := f.reads
	if dir == "" {
		dir = certsD
	}
	if dir != split {
		if err := os.MkdirAll(dir, 0o755); err != nil { // node makes it, and leaves it
			t.Fatal(err)
		}
	}
	if dir != certsD && f.args == nil {
		if err := os.MkdirAll(certsD, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	before := tree(t)
	n := startNode(t, o.mirror)
	if f.reads == "" {
		m.eventually("an answer of node", func() error { return n.notReady("does not read the folder") })
		if err := m.pull(o.image(t)); err == nil {
			t.Error("the mirror is used, and node says that it is not")
		}
		if out, err := n.check(); err == nil || !strings.Contains(out, "does not read the folder") || !strings.Contains(out, f.says) {
			t.Errorf("--check: %v, want %q\n%s", err, f.says, out)
		} else {
			t.Logf("node says: %s", out)
		}
	}
	if f.mends {
		_, table, _ := strings.Cut(n.said(t), "in the table ")
		table, _, found := strings.Cut(table, " of "+configFile)
		if !found {
			t.Fatalf("node does not say what to write: %s", n.said(t))
		}
		content := f.files[configFile]
		if content == "" {
			content = "version = 2\n"
			if strings.Contains(table, "images") {
				content = "version = 3\n"
			}
		}
		write(t, configFile, content+table+"\n"+onePath)
		before = tree(t)
		delete(before, certsD+"/_default")
		delete(before, certsD+"/_default/hosts.toml")
		m.restart()
	}
	if f.reads != "" || f.mends {
		m.eventually("node's readiness", n.ready)
		if out, err := n.check(); err != nil {
			t.Errorf("--check: %v\n%s", err, out)
		}
		asked := o.requests.Load()
		if err := m.pull(o.image(t)); err != nil || o.requests.Load() == asked {
			t.Errorf("the mirror is not used, and node says that it is: %v, %d requests to the registry", err, o.requests.Load()-asked)
		}
	}
	n.end(t)
	after := tree(t)
	for path, content := range before {
		if after[path] != content {
			t.Errorf("%s was %q and is %q", path, content, after[path])
		}
	}
	for path, content := range after {
		if _, ok := before[path]; !ok {
			t.Errorf("%s is left: %q", path, content)
		}
	}
	if err := m.pull(o.image(t)); err == nil {
		t.Error("the mirror is used after the end of node")
	}
}

// nodeProcess is a running "cachalot node".
type nodeProcess struct {
	binary, mirror, address string
	cmd                     *exec.Cmd
	log                     *strings.Builder
}

func startNode(t *testing.T, mirror string) *nodeProcess {
	t.Helper()
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	n := &nodeProcess{binary: cachalotd.Binary(t), mirror: mirror, address: l.Addr().String(), log: &strings.Builder{}}
	_ = l.Close() // node takes its port
	n.cmd = exec.CommandContext(context.WithoutCancel(t.Context()), n.binary, "node", "--mirror", mirror, "--listen", n.address)
	n.cmd.Stderr = n.log
	n.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := n.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if n.cmd.ProcessState == nil {
			_ = n.cmd.Process.Kill() // a test that failed
			_ = n.cmd.Wait()
		}
		if t.Failed() {
			t.Logf("node:\n%s", n.log)
		}
	})
	return n
}

// probe returns the answer of /readyz.
func (n *nodeProcess) probe() (int, string, error) {
	resp, err := cachalotd.Client().Get("http://" + n.address + "/readyz") //nolint:noctx // loopback
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(b), err
}

func (n *nodeProcess) ready() error {
	status, body, err := n.probe()
	if err == nil && status != http.StatusOK {
		err = fmt.Errorf("%d: %s", status, body)
	}
	return err
}

func (n *nodeProcess) notReady(why string) error {
	status, body, err := n.probe()
	if err == nil && (status != http.StatusServiceUnavailable || !strings.Contains(body, why)) {
		err = fmt.Errorf("%d: %s, want %q", status, body, why)
	}
	return err
}

func (n *nodeProcess) said(t *testing.T) string {
	t.Helper()
	_, body, err := n.probe()
	if err != nil {
		t.Fatal(err)
	}
	return body
}

// check runs node --check, as the startup probe does.
func (n *nodeProcess) check() (string, error) {
	out, err := exec.Command(n.binary, "node", "--mirror", n.mirror, "--check").CombinedOutput() //nolint:noctx // it ends by itself
	return string(out), err
}

// end ends it by SIGTERM.
func (n *nodeProcess) end(t *testing.T) {
	t.Helper()
	if err := n.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := n.cmd.Wait(); err != nil {
		t.Errorf("node ends with %v\n%s", err, n.log)
	}
}
