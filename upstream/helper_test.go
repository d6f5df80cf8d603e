package upstream

import (
	"bufio"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-containerregistry/pkg/authn"
)

// helperProgram puts docker-credential-NAME into PATH. It logs each run and its input to the
// file whose path is returned, then runs script.
func helperProgram(t *testing.T, name, script string) string {
	t.Helper()
	dir := t.TempDir()
	log := filepath.Join(dir, "log")
	body := "#!/bin/sh\nread -r server\necho \"$* $server\" >>'" + log + "'\n" + script + "\n"
	if err := os.WriteFile(filepath.Join(dir, helperPrefix+name), []byte(body), 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+string(os.PathListSeparator)+os.Getenv("PATH"))
	return log
}

func wantRuns(t *testing.T, log string, want ...string) {
	t.Helper()
	b, err := os.ReadFile(log)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	if got := strings.Fields(string(b)); strings.Join(got, " ") != strings.Join(want, " ") {
		t.Errorf("run with %q, want %q", got, want)
	}
}

const saysCanary = `echo '{"ServerURL": "x", "Username": "ann", "Secret": "` + canary + `"}'`

func TestDockerConfigHelper(t *testing.T) {
	ann := authn.AuthConfig{Username: "ann", Password: canary}
	for _, tc := range []struct {
		name, config, base, script string
		want                       authn.AuthConfig
		runs                       []string
	}{
		{"for the host", `{"credHelpers": {"r.test": "x"}}`, "https://r.test", saysCanary, ann, []string{"get", "r.test"}},
		{"for the host and port", `{"credHelpers": {"r.test:5000": "x"}}`, "http://r.test:5000", saysCanary, ann, []string{"get", "r.test:5000"}},
		{"for another host", `{"credHelpers": {"s.test": "x"}}`, "https://r.test", saysCanary, authn.AuthConfig{}, nil},
		{"for all", `{"credsStore": "x", "auths": {"r.test": {}}}`, "https://r.test", saysCanary, ann, []string{"get", "r.test"}},
		{"before what the file holds", `{"credsStore": "x", "auths": {"r.test": {"username": "a", "password": "b"}}}`, "https://r.test", saysCanary, ann, []string{"get", "r.test"}},
		{
			"for all but the host", `{"credsStore": "x", "credHelpers": {"r.test": ""}, "auths": {"r.test": {"username": "a", "password": "b"}}}`, "https://r.test",
			saysCanary,
			authn.AuthConfig{Username: "a", Password: "b"},
			nil,
		},
		{"Docker Hub", `{"credsStore": "x"}`, "https://registry-1.docker.io", saysCanary, ann, []string{"get", dockerHub}},
		{"not found", `{"credsStore": "x"}`, "https://r.test", `echo "credentials not found in native keychain"; exit 1`, authn.AuthConfig{}, []string{"get", "r.test"}},
		{
			"an identity token", `{"credsStore": "x"}`, "https://r.test", `echo '{"Username": "<token>", "Secret": "a"}'`,
			authn.AuthConfig{IdentityToken: "a"},
			[]string{"get", "r.test"},
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			log := helperProgram(t, "x", tc.script)
			a, _ := dockerAccount(t, tc.config)
			c := sourceOf(t, a, tc.base)
			wantRuns(t, log) // no run before the first get
			wantGot(t, c, tc.want)
			wantRuns(t, log, tc.runs...)
			wantGot(t, c, tc.want)
			wantRuns(t, log, append(tc.runs, tc.runs...)...)
		})
	}
}

func TestDockerConfigHelperFails(t *testing.T) {
	for _, tc := range []struct {
		name, script string
		want         []string
	}{
		{"with its secret", saysCanary + "; exit 3", []string{"run docker-credential-x: exit status 3"}},
		{"with its secret and a word on it", saysCanary + "; echo one >&2; echo 'two \033[31m' >&2; echo >&2; exit 3", []string{"exit status 3: two [31m"}},
		{"traced", "set -x\n" + saysCanary + "; exit 3", []string{"exit status 3: + exit 3"}},
		{"traced, with the secret last", "set -x\n" + saysCanary + "\nset +x; kill -9 $$", []string{"signal: killed"}},
		{"with the secret on stderr", saysCanary + "; echo refused " + canary + " >&2; exit 3", []string{"exit status 3: refused [redacted]"}},
		{"by a message on stdout", "echo " + canary + "; exit 1", []string{"exit status 1"}},
		{"with no JSON", "echo " + canary, []string{"its output is not a credential in JSON"}},
		{"with another JSON", `echo '["` + canary + `"]'`, []string{"its output is not a credential in JSON"}},
		{"with nothing", "true", []string{"its output is not a credential in JSON"}},
		{"with too much", `while echo "` + strings.Repeat(canary, 100) + `"; do :; done`, []string{"it wrote more than "}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			helperProgram(t, "x", tc.script)
			a, _ := dockerAccount(t, `{"credsStore": "x"}`)
			wantFailed(t, sourceOf(t, a, "https://r.test"), tc.want...)
		})
	}
}

// TestDockerConfigHelperMissing: a helper that was removed is an error at the next get.
func TestDockerConfigHelperMissing(t *testing.T) {
	log := helperProgram(t, "x", saysCanary)
	a, _ := dockerAccount(t, `{"credsStore": "x"}`)
	c := sourceOf(t, a, "https://r.test")
	if err := os.Remove(filepath.Join(filepath.Dir(log), helperPrefix+"x")); err != nil {
		t.Fatal(err)
	}
	wantFailed(t, c, "run docker-credential-x: ", "executable file not found")
	wantRuns(t, log)
}

// TestDockerConfigHelperHangs: when the caller's context ends, a helper that hangs ends, and so
// do its child processes.
func TestDockerConfigHelperHangs(t *testing.T) {
	fifo := filepath.Join(t.TempDir(), "alive")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	helperProgram(t, "x", "exec 3>'"+fifo+"'\nsleep 600 &\necho begun >&3\nwait")
	a, _ := dockerAccount(t, `{"credsStore": "x"}`)
	c := sourceOf(t, a, "https://r.test").(*shared)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		_, err := c.get(ctx)
		ended <- err
	}()
	alive, err := os.Open(fifo)
	if err != nil {
		t.Fatal(err)
	}
	defer alive.Close()
	lines := bufio.NewReader(alive)
	if line, err := lines.ReadString('\n'); line != "begun\n" {
		t.Fatalf("got %q, %v", line, err)
	}
	c.mu.Lock()
	q := c.now
	c.mu.Unlock()
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	<-q.done
	if rest, err := io.ReadAll(lines); err != nil || len(rest) > 0 { // ends when both processes have closed it
		t.Errorf("got %q, %v", rest, err)
	}
}

// TestDockerConfigHelperDaemon: a helper's answer is used, even if it leaves a process that
// keeps its output open.
func TestDockerConfigHelperDaemon(t *testing.T) {
	pid := filepath.Join(t.TempDir(), "pid")
	helperProgram(t, "x", "sleep 600 &\necho $! >'"+pid+"'\n"+saysCanary)
	a, _ := dockerAccount(t, `{"credsStore": "x"}`)
	wantGot(t, sourceOf(t, a, "https://r.test"), authn.AuthConfig{Username: "ann", Password: canary})
	b, err := os.ReadFile(pid)
	if err != nil {
		t.Fatal(err)
	}
	daemon, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(daemon, syscall.SIGKILL); err != nil {
		t.Error(err)
	}
}

// TestDockerConfigHelperQuiet: the stderr of a helper is not copied to the mirror's.
func TestDockerConfigHelperQuiet(t *testing.T) {
	helperProgram(t, "x", "echo "+canary+" >&2\n"+saysCanary)
	a, _ := dockerAccount(t, `{"credsStore": "x"}`)
	c := sourceOf(t, a, "https://r.test")
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	ours := os.Stderr
	os.Stderr = w
	_, err = c.get(t.Context())
	os.Stderr = ours
	w.Close()
	if err != nil {
		t.Error(err)
	}
	if b, err := io.ReadAll(r); err != nil || len(b) > 0 {
		t.Errorf("got %q, %v", b, err)
	}
}
