package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// dindImage is a folder with a container's disk: the binary, and programs in place of
// docker:dind's.
type dindImage struct {
	dir string
	uid int
}

// newDindImage makes an image whose network has the given MTU.
func newDindImage(t *testing.T, programs string, uid int, mtu string) dindImage {
	t.Helper()
	try := exec.CommandContext(t.Context(), "/proc/self/exe", "-test.run=^$")
	try.SysProcAttr = (dindImage{dir: "/", uid: uid}).attributes()
	if err := try.Run(); err != nil {
		t.Skip("changing the root folder takes root with its capabilities, or a user namespace: ", err)
	}
	i := dindImage{dir: t.TempDir(), uid: uid}
	bin := filepath.Join(i.dir, "usr/local/bin")
	if err := os.MkdirAll(bin, 0o755); err != nil {
		t.Fatal(err)
	}
	// A link, not a copy: a file that was just written cannot be run while another test forks.
	for name, program := range map[string]string{"cachalot": "cachalot", "dockerd": "dindbase", "dockerd-entrypoint.sh": "dindbase"} {
		if err := os.Link(filepath.Join(programs, program), filepath.Join(bin, name)); err != nil {
			t.Fatal(err)
		}
	}
	i.put(t, "dev/null", "")
	i.put(t, "proc/net/route", "Iface\nnet0 00000000 010011AC 0003 0 0 0 00000000 0 0 0\n")
	i.put(t, "sys/class/net/net0/mtu", mtu+"\n")
	home := filepath.Join(i.dir, "home")
	if err := os.Mkdir(home, 0o755); err != nil {
		t.Fatal(err)
	}
	if os.Getuid() == 0 {
		if err := os.Chown(home, uid, uid); err != nil {
			t.Fatal(err)
		}
	}
	return i
}

func (i dindImage) put(t *testing.T, path, content string) {
	t.Helper()
	file := filepath.Join(i.dir, path)
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

func (i dindImage) read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(i.dir, path))
	if err != nil {
		t.Error(err)
	}
	return string(b)
}

// command runs the image's entrypoint with the image as its root folder.
func (i dindImage) command(t *testing.T, stderr io.Writer, env []string, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "/usr/local/bin/cachalot", append([]string{"dind"}, args...)...)
	cmd.Dir = "/"
	cmd.Env = append([]string{"PATH=/usr/local/bin", "HOME=/home", "TEST_VERSION=29.7.2"}, env...)
	cmd.Stderr = stderr
	cmd.SysProcAttr = i.attributes()
	return cmd
}

// attributes set a process' root folder to the image, and its user to the image's user.
func (i dindImage) attributes() *syscall.SysProcAttr {
	a := &syscall.SysProcAttr{Chroot: i.dir, Credential: &syscall.Credential{Uid: uint32(i.uid), Gid: uint32(i.uid)}}
	if os.Getuid() != 0 { // a user namespace gives root
		a.Cloneflags = syscall.CLONE_NEWUSER
		a.UidMappings = []syscall.SysProcIDMap{{ContainerID: i.uid, HostID: os.Getuid(), Size: 1}}
		a.GidMappings = []syscall.SysProcIDMap{{ContainerID: i.uid, HostID: os.Getgid(), Size: 1}}
		a.Credential.NoSetGroups = true
	}
	return a
}

// began is the environment and arguments that the base's entrypoint got.
type began struct {
	PID  int      `json:"pid"`
	Args []string `json:"args"`
	Env  []string `json:"env"`
}

func (b began) has(name, value string) bool { return slices.Contains(b.Env, name+"="+value) }

// run runs the entrypoint until it ends.
func (i dindImage) run(t *testing.T, env []string, args ...string) (base began, stderr string, code int) {
	t.Helper()
	var stdout, log strings.Builder
	cmd := i.command(t, &log, env, args...)
	cmd.Stdout = &stdout
	err := cmd.Run()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		code = exit.ExitCode()
	} else if err != nil {
		t.Fatal(err)
	}
	if stdout.Len() > 0 {
		if err := json.Unmarshal([]byte(stdout.String()), &base); err != nil {
			t.Fatalf("%v\n%s", err, &stdout)
		}
	}
	return base, log.String(), code
}

// buildDind builds the binary and the programs of a base.
func buildDind(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for name, pkg := range map[string]string{"cachalot": ".", "dindbase": "./testdata/dindbase"} {
		// go run caches the linked program; git rejects another user's checkout.
		cmd := exec.CommandContext(t.Context(), "go", "run", "-buildvcs=false", "-exec", "cp", pkg, filepath.Join(dir, name))
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0") // the image has no libraries
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}
	return dir
}

// TestDind runs the built binary as the entrypoint of an image.
func TestDind(t *testing.T) {
	t.Parallel()
	programs := buildDind(t)
	mirror := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	t.Cleanup(mirror.Close)
	set := []string{"CACHALOT_MIRROR=" + mirror.URL, "CI_REGISTRY=ci.example:5050"}

	t.Run("root", func(t *testing.T) {
		t.Parallel()
		i := newDindImage(t, programs, 0, "1400")
		for range 2 { // the second run is a restart
			base, stderr, code := i.run(t, append(set, "DOCKER_DRIVER=overlay2", "DOCKER_TLS_CERTDIR=/certs", "TEST_EXIT=7"), "-D")
			want := []string{
				"dockerd-entrypoint.sh", "-D", "--registry-mirror=" + mirror.URL,
				"--mtu=1400", "--default-network-opt=bridge=com.docker.network.driver.mtu=1400",
			}
			if code != 7 || !slices.Equal(base.Args, want) {
				t.Errorf("exit code %d, arguments %q\n%s", code, base.Args, stderr)
			}
			if !base.has("DOCKER_TLS_CERTDIR", "/certs") || slices.Contains(base.Env, "DOCKER_DRIVER=overlay2") {
				t.Errorf("environment: %q", base.Env)
			}
			if n := strings.Count(stderr, "\n"); n != 5 || strings.Count(stderr, "cachalot: ") != n || strings.Contains(stderr, "warning") {
				t.Errorf("log:\n%s", stderr)
			}
			for path, want := range map[string]string{
				"etc/docker/certs.d/_default/hosts.toml":         "[host.\"" + mirror.URL + "\"]",
				"etc/docker/certs.d/ci.example_5050_/hosts.toml": "# CI_REGISTRY: ",
				"home/.docker/buildx/buildkitd.default.toml":     "[registry.\"ghcr.io\"]",
			} {
				if got := i.read(t, path); !strings.Contains(got, want) {
					t.Errorf("%s:\n%s", path, got)
				}
			}
		}
	})
	t.Run("rootless", func(t *testing.T) {
		t.Parallel()
		i := newDindImage(t, programs, 1000, "1400")
		base, stderr, code := i.run(t, set, "dockerd")
		if code != 0 || len(base.Args) != 5 || base.Args[1] != "dockerd" || !base.has("DOCKERD_ROOTLESS_ROOTLESSKIT_MTU", "1400") {
			t.Errorf("exit code %d, %+v\n%s", code, base, stderr)
		}
		if got := i.read(t, "home/.config/docker/certs.d/_default/hosts.toml"); !strings.Contains(got, mirror.URL) {
			t.Errorf("hosts.toml:\n%s", got)
		}
	})
	t.Run("old", func(t *testing.T) {
		t.Parallel()
		i := newDindImage(t, programs, 0, "1500")
		base, stderr, code := i.run(t, append(set, "TEST_VERSION=20.10.24"))
		if want := []string{"dockerd-entrypoint.sh", "--registry-mirror=" + mirror.URL, "--insecure-registry=" + mirror.URL}; code != 0 || !slices.Equal(base.Args, want) {
			t.Errorf("exit code %d, %q\n%s", code, base.Args, stderr)
		}
		if _, err := os.Stat(filepath.Join(i.dir, "etc/docker")); err == nil || !strings.Contains(stderr, "dockerd 20.10.24 can mirror no other registry") {
			t.Errorf("%v\n%s", err, stderr)
		}
	})
	t.Run("command", func(t *testing.T) {
		t.Parallel()
		i := newDindImage(t, programs, 0, "1400")
		base, stderr, code := i.run(t, append(set, "TEST_EXIT=3"), "docker", "--help")
		if want := []string{"dockerd-entrypoint.sh", "docker", "--help"}; code != 3 || !slices.Equal(base.Args, want) || strings.Count(stderr, "\n") != 1 {
			t.Errorf("exit code %d, %q\n%s", code, base.Args, stderr)
		}
	})
	t.Run("help is the base's", func(t *testing.T) {
		t.Parallel()
		i := newDindImage(t, programs, 0, "1500")
		base, stderr, code := i.run(t, nil, "--help")
		if want := []string{"dockerd-entrypoint.sh", "--help"}; code != 0 || !slices.Equal(base.Args, want) || !strings.HasPrefix(stderr, "cachalot: CACHALOT_MIRROR is not set") {
			t.Errorf("exit code %d, %q\n%s", code, base.Args, stderr)
		}
	})
	t.Run("wrong", func(t *testing.T) {
		t.Parallel()
		i := newDindImage(t, programs, 0, "1500")
		base, stderr, code := i.run(t, []string{"CACHALOT_MIRROR=mirror:5000", "CACHALOT_KEEP_DRIVER=on"})
		const want = "cachalot: CACHALOT_MIRROR: write the mirror's URL, such as http://cachalot.example:5000\n" +
			"cachalot: CACHALOT_KEEP_DRIVER: \"on\" is not known; write true or false\n" +
			"See \"cachalot help dind\".\n"
		if code != 2 || stderr != want || base.Args != nil {
			t.Errorf("exit code %d, %q\n%s", code, base.Args, stderr)
		}
		if _, err := os.Stat(filepath.Join(i.dir, "etc")); err == nil {
			t.Error("something was written")
		}
	})
	t.Run("no base", func(t *testing.T) {
		t.Parallel()
		i := newDindImage(t, programs, 0, "1500")
		_, stderr, code := i.run(t, append(set, "PATH=/bin"))
		if code != 1 || !strings.HasPrefix(stderr, "cachalot: dockerd-entrypoint.sh is not in PATH: ") {
			t.Errorf("exit code %d\n%s", code, stderr)
		}
	})
	t.Run("signals", func(t *testing.T) { dindSignals(t, newDindImage(t, programs, 0, "1500"), set) })
}

// dindSignals: the base runs in the process that was started.
func dindSignals(t *testing.T, i dindImage, env []string) {
	t.Helper()
	var stderr strings.Builder
	cmd := i.command(t, &stderr, append(env, "TEST_WAITS=1", "TEST_EXIT=9"))
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	line := func() string {
		if !lines.Scan() {
			t.Fatalf("%v\n%s", lines.Err(), &stderr)
		}
		return lines.Text()
	}
	var base began
	if err := json.Unmarshal([]byte(line()), &base); err != nil {
		t.Fatal(err)
	}
	if base.PID != cmd.Process.Pid {
		t.Fatalf("process %d became %d", cmd.Process.Pid, base.PID)
	}
	for _, s := range []syscall.Signal{syscall.SIGHUP, syscall.SIGTERM} {
		if err := cmd.Process.Signal(s); err != nil {
			t.Fatal(err)
		}
		if got := line(); got != s.String() {
			t.Errorf("%q reached it, want %q", got, s)
		}
	}
	exit, ok := errors.AsType[*exec.ExitError](cmd.Wait())
	if !ok || exit.ExitCode() != 9 {
		t.Errorf("ended with %v\n%s", exit, &stderr)
	}
}
