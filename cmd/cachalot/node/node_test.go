package node

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/pem"
	"errors"
	"io/fs"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

const exampleMirror = "http://192.0.2.7:5000"

func newNode(t *testing.T, cfg Config) (*Node, *bytes.Buffer) {
	t.Helper()
	if cfg.Mirror == "" {
		cfg.Mirror = exampleMirror
	}
	if cfg.Owner == "" {
		cfg.Owner = "apps.mirror"
	}
	if cfg.Socket == "" {
		cfg.Socket = NoSocket
	}
	var log bytes.Buffer
	n, err := New(cfg, slog.New(slog.NewTextHandler(&log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	return n, &log
}

// tree returns a folder's files: contents and permissions by path.
func tree(t *testing.T, dir string) map[string]string {
	t.Helper()
	found := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || path == dir {
			return err
		}
		name, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		if found[name] = info.Mode().String(); info.Mode().IsRegular() {
			content, err := os.ReadFile(path)
			found[name] += " " + string(content)
			return err
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func sameTree(t *testing.T, when string, got, want map[string]string) {
	t.Helper()
	for name, content := range want {
		if got[name] != content {
			t.Errorf("%s: %s is %q, want %q", when, name, got[name], content)
		}
	}
	for name, content := range got {
		if _, ok := want[name]; !ok {
			t.Errorf("%s: %s is there: %q", when, name, content)
		}
	}
}

func put(t *testing.T, dir, name, content string, mode fs.FileMode) {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
}

// TestRun covers a mirror's life: it is up, down for a moment, down for long, up again;
// then node gets the signal to end.
func TestRun(t *testing.T) {
	for name, files := range map[string]map[string]string{
		"an empty folder": {},
		"others' files": {
			"_default/hosts.toml":  "server = \"https://upstream.example\"\n\n[host.\"https://theirs.example\"]\n  capabilities = [\"pull\"]",
			"docker.io/hosts.toml": "server = \"https://registry-1.docker.io\"\n",
			"quay.io/ca.crt":       "a certificate",
			"note":                 "no folder",
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			for file, content := range files {
				put(t, dir, file, content, 0o640)
			}
			before := tree(t, dir)
			synctest.Test(t, func(t *testing.T) {
				n, log := newNode(t, Config{Dir: dir})
				var away atomic.Bool
				n.ask = func(context.Context) error {
					if away.Load() {
						return errors.New("connection refused")
					}
					return nil
				}
				ctx, stop := context.WithCancel(t.Context())
				ended := make(chan error)
				go func() { ended <- n.Run(ctx) }()
				after := func(when string, d time.Duration, there bool) {
					t.Helper()
					time.Sleep(d)
					synctest.Wait()
					if err := n.Check(t.Context()); (err == nil) != there {
						t.Errorf("%s: %v\n%s", when, err, log)
					}
					if !there {
						sameTree(t, when, tree(t, dir), before)
					}
				}
				after("it answers", 0, true)
				with := tree(t, dir)
				for file := range files {
					if file != "_default/hosts.toml" && with[file] != before[file] {
						t.Errorf("%s is %q", file, with[file])
					}
				}
				after("all along", time.Minute, true)
				sameTree(t, "all along", tree(t, dir), with)
				away.Store(true)
				after("two failures", 2*askEvery, true)
				away.Store(false)
				after("an answer", askEvery, true)
				away.Store(true)
				after("two more", 2*askEvery, true)
				after("three in a row", askEvery, false)
				after("for long", time.Hour, false)
				away.Store(false)
				after("it is back", askEvery, true)
				sameTree(t, "it is back", tree(t, dir), with)
				stop()
				if err := <-ended; err != nil {
					t.Error(err)
				}
				sameTree(t, "at the end", tree(t, dir), before)
				for message, want := range map[string]int{"containerd asks the mirror": 2, "the mirror does not answer": 1, "have folders of their own": min(len(files), 1)} {
					if got := strings.Count(log.String(), message); got != want {
						t.Errorf("%d times %q, want %d:\n%s", got, message, want, log)
					}
				}
			})
		})
	}
}

// TestStartWithoutMirror: the files of a killed process stay until the mirror is certainly down.
func TestStartWithoutMirror(t *testing.T) {
	dir := t.TempDir()
	left, _ := newNode(t, Config{Dir: dir})
	left.put()
	synctest.Test(t, func(t *testing.T) {
		n, log := newNode(t, Config{Dir: dir})
		n.ask = func(context.Context) error { return errors.New("no route to host") }
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- n.Run(ctx) }()
		synctest.Wait()
		if err := n.Check(t.Context()); err != nil {
			t.Errorf("at once: %v", err)
		}
		time.Sleep(2 * askEvery)
		synctest.Wait()
		if err := n.Check(t.Context()); err == nil {
			t.Errorf("it is still there:\n%s", log)
		}
		sameTree(t, "the mirror is away", tree(t, dir), map[string]string{})
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

// TestRegistries: the configured registries get the mirror, in the files that they already
// have. Those of an earlier start lose it.
func TestRegistries(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	put(t, dir, "quay.io/hosts.toml", "server = \"https://quay.io\"\n", 0o600)
	before := tree(t, dir)
	n, _ := newNode(t, Config{Dir: dir, Registries: []string{"quay.io", "registry.example:8443"}})
	n.put()
	got := tree(t, dir)
	for _, file := range []string{"quay.io/hosts.toml", "registry.example_8443_/hosts.toml"} {
		if !strings.Contains(got[file], exampleMirror) {
			t.Errorf("%s is %q", file, got[file])
		}
	}
	if got["_default/hosts.toml"] != "" {
		t.Errorf("all registries: %q", got["_default/hosts.toml"])
	}
	n, _ = newNode(t, Config{Dir: dir})
	n.put()
	if got := tree(t, dir); got["quay.io/hosts.toml"] != before["quay.io/hosts.toml"] || got["registry.example_8443_"] != "" || !strings.Contains(got["_default/hosts.toml"], exampleMirror) {
		t.Errorf("all registries: %q", got)
	}
	if err := n.remove(); err != nil {
		t.Error(err)
	}
	sameTree(t, "at the end", tree(t, dir), before)
}

// TestNode_UnsafeFilesStay: a file that node cannot change safely stays unchanged, and the log says so.
func TestNode_UnsafeFilesStay(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		make func(t *testing.T, dir string)
		want string
	}{
		"certificates": {func(t *testing.T, dir string) {
			t.Helper()
			put(t, dir, "_default/ca.crt", "a certificate", 0o644)
		}, "would ignore _default/ca.crt"},
		"a link": {func(t *testing.T, dir string) {
			t.Helper()
			put(t, dir, "real/hosts.toml", "server = \"https://a\"\n", 0o644)
			put(t, dir, "_default/x", "", 0o644)
			if err := os.Symlink("../real/hosts.toml", filepath.Join(dir, "_default", "hosts.toml")); err != nil {
				t.Fatal(err)
			}
		}, "it is a link"},
		"a link that leads out": {func(t *testing.T, dir string) {
			t.Helper()
			if err := os.Symlink(t.TempDir(), filepath.Join(dir, "_default")); err != nil {
				t.Fatal(err)
			}
		}, "escapes"},
		"not TOML": {func(t *testing.T, dir string) {
			t.Helper()
			put(t, dir, "_default/hosts.toml", "server: https://a\n", 0o644)
		}, "not TOML"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			tc.make(t, dir)
			before := tree(t, dir)
			n, log := newNode(t, Config{Dir: dir})
			n.put()
			n.put()
			if got := log.String(); strings.Count(got, tc.want) != 1 || strings.Contains(got, "asks the mirror\"") {
				t.Errorf("the log does not say %q once:\n%s", tc.want, got)
			}
			if err := n.Check(t.Context()); err == nil {
				t.Error("it is said to be there")
			}
			sameTree(t, "afterwards", tree(t, dir), before)
			if err := n.remove(); err != nil {
				t.Error(err)
			}
			sameTree(t, "at the end", tree(t, dir), before)
		})
	}
}

// TestCannotWrite: a missing or read-only folder is an error that names it. node continues.
func TestCannotWrite(t *testing.T) {
	t.Parallel()
	n, log := newNode(t, Config{Dir: filepath.Join(t.TempDir(), "certs.d")})
	n.put()
	if !strings.Contains(log.String(), "certs.d: no such file") {
		t.Errorf("%s", log)
	}
	if err := n.Check(t.Context()); err == nil || !strings.Contains(err.Error(), "certs.d") {
		t.Error(err)
	}
	if err := n.remove(); err == nil || !strings.Contains(err.Error(), "certs.d") {
		t.Error(err)
	}
}

// TestAuthority: containerd gets the CA in its own file, which follows changes. node uses
// it to reach the mirror.
func TestAuthority(t *testing.T) {
	t.Parallel()
	mirror := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/v2/" {
			w.WriteHeader(http.StatusNotFound)
		}
	}))
	defer mirror.Close()
	dir, ca := t.TempDir(), filepath.Join(t.TempDir(), "ca.crt")
	own := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: mirror.Certificate().Raw})
	if err := os.WriteFile(ca, own, 0o600); err != nil {
		t.Fatal(err)
	}
	n, log := newNode(t, Config{Dir: dir, Mirror: mirror.URL, CA: ca})
	if err := n.ask(t.Context()); err != nil {
		t.Error(err)
	}
	n.put()
	if err := n.Check(t.Context()); err != nil {
		t.Errorf("%v\n%s", err, log)
	}
	got := tree(t, dir)
	file := filepath.Join(dir, "cachalot-apps.mirror.pem")
	if !strings.Contains(got["_default/hosts.toml"], "ca = [\""+file+"\"]") || got[filepath.Base(file)] != "-rw-r--r-- "+string(own) {
		t.Errorf("%q", got)
	}
	renewed := append([]byte("# renewed\n"), own...)
	if err := os.WriteFile(ca, renewed, 0o600); err != nil {
		t.Fatal(err)
	}
	n.put()
	if got := tree(t, dir)[filepath.Base(file)]; !strings.HasSuffix(got, string(renewed)) {
		t.Errorf("the CA is %q", got)
	}
	if err := n.remove(); err != nil {
		t.Error(err)
	}
	sameTree(t, "at the end", tree(t, dir), map[string]string{})
	if err := os.WriteFile(ca, []byte("nothing"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := n.ask(t.Context()); err == nil || !strings.Contains(err.Error(), "no certificate") {
		t.Error(err)
	}
}

// TestAsk tests which responses count as a running mirror.
func TestAsk(t *testing.T) {
	t.Parallel()
	status := http.StatusOK
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/below/v2/" || r.TLS == nil {
			t.Errorf("%s, %v", r.URL, r.TLS)
		}
		w.Header().Set("Location", "/v2/elsewhere")
		w.WriteHeader(status)
	})
	mirror := httptest.NewUnstartedServer(handler)
	mirror.TLS = &tls.Config{MinVersion: tls.VersionTLS12}
	mirror.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	mirror.StartTLS()
	n, _ := newNode(t, Config{Dir: t.TempDir(), Mirror: mirror.URL + "/below/"})
	// The node may already trust the mirror's certificate.
	if err := n.ask(t.Context()); err != nil {
		t.Error(err)
	}
	for _, status = range []int{http.StatusUnauthorized, http.StatusFound, http.StatusBadGateway} {
		if err := n.ask(t.Context()); err == nil {
			t.Errorf("%d is an answer", status)
		}
	}
	mirror.Close()
	err := n.ask(t.Context())
	if err == nil || !strings.Contains(err.Error(), "connection refused") || strings.Contains(err.Error(), "127.0.0.1") {
		t.Errorf("%v: each of these is a line in the log unless they are the same", err)
	}
}

func TestNewRefuses(t *testing.T) {
	t.Parallel()
	for field, cfg := range map[string]Config{
		"owner":       {Dir: "/certs.d", Owner: "a b", Mirror: exampleMirror},
		"config-path": {Dir: "certs.d", Owner: "a", Mirror: exampleMirror},
		"mirror":      {Dir: "/certs.d", Owner: "a", Mirror: "http://$(MIRROR_SERVICE_HOST):5000"},
		"ca":          {Dir: "/certs.d", Owner: "a", Mirror: exampleMirror, CA: "/ca.crt"},
		"registry":    {Dir: "/certs.d", Owner: "a", Mirror: exampleMirror, Registries: []string{"../.."}},
	} {
		_, err := New(cfg, slog.New(slog.DiscardHandler))
		wrong, ok := errors.AsType[*ConfigError](err)
		if !ok || wrong.Field != field || wrong.Reason == "" {
			t.Errorf("%s: %v", field, err)
		}
	}
}

// TestMirrorURL_Brackets: Kubernetes may fill in an IPv4 or an IPv6 address.
func TestMirrorURL_Brackets(t *testing.T) {
	t.Parallel()
	for given, want := range map[string]string{
		"http://[192.0.2.7]:30500":   "http://192.0.2.7:30500",
		"http://[2001:db8::7]:30500": "http://[2001:db8::7]:30500",
	} {
		n, _ := newNode(t, Config{Dir: "/certs.d", Mirror: given})
		if got := n.blocks[defaultName]; got.url != want || !strings.Contains(got.lines, want) {
			t.Errorf("%s: %+v", given, got)
		}
	}
}
