package dind

import (
	"bytes"
	"encoding/pem"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// snapshot returns all files below a root with their contents and modification times.
func snapshot(t *testing.T, root Root) (files map[string]string, changed map[string]time.Time) {
	t.Helper()
	files, changed = make(map[string]string), make(map[string]time.Time)
	err := filepath.WalkDir(string(root), func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		b, err := os.ReadFile(path)
		files[path], changed[path] = string(b), info.ModTime()
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files, changed
}

// A container that starts again changes none of its own files.
func TestPlan_SecondStartChangesNothing(t *testing.T) {
	t.Parallel()
	ca := newAuthority(t, "ours")
	for _, uid := range []int{0, 1000} {
		s := scene{uid: uid, env: []string{"CACHALOT_CA=" + ca, "CACHALOT_DIRECT=a.example:1"}, there: network("1400", "/etc/ssl/cert.pem", newAuthority(t, "system"))}
		in := s.input(t)
		var plans [2]Plan
		var files [2]map[string]string
		var changed [2]map[string]time.Time
		for i := range 2 {
			plan, err := NewPlan(in)
			if err != nil {
				t.Fatal(err)
			}
			plans[i], plan.probe = plan, nil
			var stderr bytes.Buffer
			plan.do(t.Context(), in.Root, &stderr)
			if strings.Contains(stderr.String(), "warning") || strings.Count(stderr.String(), "cachalot: ") != len(plan.Log) {
				t.Errorf("log:\n%s", &stderr)
			}
			files[i], changed[i] = snapshot(t, in.Root)
		}
		if len(files[0]) < 7 {
			t.Fatalf("%d files", len(files[0]))
		}
		for path, content := range files[0] {
			if files[1][path] != content || !changed[1][path].Equal(changed[0][path]) {
				t.Errorf("%s changed to:\n%s", path, files[1][path])
			}
		}
		if len(files[1]) != len(files[0]) || !slices.Equal(plans[0].Args, plans[1].Args) {
			t.Errorf("%d files, %q; then %d files, %q", len(files[0]), plans[0].Args, len(files[1]), plans[1].Args)
		}
	}
}

// A restart removes the files of registries that are no longer direct. The user's files stay.
func TestNoLongerDirect(t *testing.T) {
	t.Parallel()
	in := scene{env: []string{"CACHALOT_DIRECT=a.example,b.example,c.example"}}.input(t)
	start := func() {
		plan, err := NewPlan(in)
		if err != nil {
			t.Fatal(err)
		}
		plan.probe = nil
		var stderr bytes.Buffer
		if plan.do(t.Context(), in.Root, &stderr); strings.Contains(stderr.String(), "warning") {
			t.Errorf("log:\n%s", &stderr)
		}
	}
	start()
	put(t, in.Root, certs+"b.example/ca.crt", "")
	put(t, in.Root, certs+"mine.example/hosts.toml", "server = 'x'")
	in.Env = environ(in.Env).with(directVariable, "c.example").with(mirrorVariable, "http://other")
	start()
	for folder, want := range map[string]string{
		"": "_default b.example c.example mine.example other", "b.example": "ca.crt", "c.example": "hosts.toml",
	} {
		if got := strings.Join(in.Root.names(certs+folder), " "); got != want {
			t.Errorf("%s%s: %s, want %s", certs, folder, got, want)
		}
	}
}

// An error while files are written is logged, and the other files are written.
func TestDiskTrouble(t *testing.T) {
	t.Parallel()
	in := scene{}.input(t)
	plan, err := NewPlan(in)
	if err != nil {
		t.Fatal(err)
	}
	plan.probe = nil
	put(t, in.Root, filepath.Dir(defaultFile), "a file, since the plan was made")
	put(t, in.Root, buildxFile+"/", "")
	var stderr bytes.Buffer
	plan.do(t.Context(), in.Root, &stderr)
	for _, want := range []string{
		"cachalot: warning: make the folder of " + defaultFile + ": not a directory\n",
		"cachalot: warning: write " + buildxFile + ": file exists\n",
	} {
		if !strings.Contains(stderr.String(), want) {
			t.Errorf("no %q in:\n%s", want, &stderr)
		}
	}
	if _, err := in.Root.read(itselfFile); err != nil {
		t.Error(err)
	}
	if names := in.Root.names(filepath.Dir(buildxFile)); !slices.Equal(names, []string{filepath.Base(buildxFile)}) {
		t.Errorf("left over: %q", names)
	}
}

func TestProbe(t *testing.T) {
	t.Parallel()
	var asked atomic.Int64
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		switch r.URL.Path {
		case "/v2/", "/below/v2/":
		case "/moved/v2/":
			http.Redirect(w, r, "/v2/", http.StatusMovedPermanently)
		default:
			w.WriteHeader(http.StatusNotFound)
		}
	})
	plain, encrypted := httptest.NewServer(handler), httptest.NewTLSServer(handler)
	t.Cleanup(plain.Close)
	t.Cleanup(encrypted.Close)
	closed := httptest.NewServer(nil)
	closed.Close()
	ca := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: encrypted.Certificate().Raw}))
	for _, tc := range []struct {
		name, mirror, ca string
		requests         int64
		want             string
	}{
		{"well", plain.URL, "", 1, ""},
		{"path", plain.URL + "/below", "", 1, ""},
		{"not a mirror", plain.URL + "/other", "", 1, "this is not a mirror: GET " + plain.URL + "/other/v2/: 404 Not Found"},
		{"redirect", plain.URL + "/moved", "", 1, "this is not a mirror: GET " + plain.URL + "/moved/v2/: 301 Moved Permanently"},
		{"closed", closed.URL, "", 0, "connection refused"},
		{"CA", encrypted.URL, ca, 1, ""},
		{"no CA", encrypted.URL, "", 0, "certificate signed by unknown authority; write its CA's certificate in CACHALOT_CA"},
		{"another CA", encrypted.URL, newAuthority(t, "another"), 0, "certificate signed by unknown authority, also with CACHALOT_CA"},
		{"http, not https", strings.Replace(plain.URL, "http", "https", 1), "", 0, "server gave HTTP response to HTTPS client"},
	} {
		before := asked.Load()
		u, err := url.Parse(tc.mirror)
		if err != nil {
			t.Fatal(err)
		}
		p := probe{mirror: u}
		if tc.ca != "" {
			p.ca = []byte(tc.ca)
		}
		err = p.ask(t.Context())
		if tc.want == "" && err != nil || tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)) {
			t.Errorf("%s: %v, want %q", tc.name, err, tc.want)
		}
		if got := asked.Load() - before; got != tc.requests {
			t.Errorf("%s: %d requests, want %d", tc.name, got, tc.requests)
		}
	}
}

// If the mirror is down, a warning is logged and everything is set up anyway.
func TestMirrorDown(t *testing.T) {
	t.Parallel()
	closed := httptest.NewServer(nil)
	closed.Close()
	in := scene{env: []string{"CACHALOT_MIRROR=" + closed.URL}}.input(t)
	plan, err := NewPlan(in)
	if err != nil {
		t.Fatal(err)
	}
	var stderr bytes.Buffer
	plan.do(t.Context(), in.Root, &stderr)
	lines := strings.Split(strings.TrimSpace(stderr.String()), "\n")
	last := lines[len(lines)-1]
	if !strings.HasPrefix(last, "cachalot: warning: the mirror does not answer: ") || !strings.HasSuffix(last, "; it is asked again at each pull") {
		t.Errorf("log:\n%s", &stderr)
	}
	if b, err := in.Root.read(defaultFile); err != nil || !strings.Contains(string(b), closed.URL) {
		t.Errorf("%v\n%s", err, b)
	}
}
