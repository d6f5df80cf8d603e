package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"testing"
)

// TestMain also runs the command, in processes that the tests start.
func TestMain(m *testing.M) {
	if os.Getenv(asCommand) != "" || len(os.Args) > 1 && os.Args[1] == "upstream" {
		main()
		return
	}
	os.Exit(m.Run())
}

const asCommand = "CACHALOT_BENCH_TEST"

// small makes a run take seconds. Its figures mean nothing.
const small = 64

// runCommand runs the benchmark in its own process, because it pins itself.
func runCommand(t *testing.T, args ...string) (out, said string, err error) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), self, args...)
	cmd.Env = append(os.Environ(), asCommand+"=1")
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err = cmd.Run()
	return stdout.String(), stderr.String(), err
}

// TestRun runs all works once with cachalot alone, and the warm works with an external rival.
func TestRun(t *testing.T) {
	t.Parallel()
	b := &bench{dir: t.TempDir()}
	up, err := b.startUpstream(t.Context(), upstreamOptions{open: true}, warmContent(warmBlobSize/small).spec)
	if err != nil {
		t.Fatal(err)
	}
	defer up.stop()
	dir := t.TempDir()
	page := filepath.Join(dir, "page.md")
	if err := os.WriteFile(page, []byte("# Page\n\n"+beginMark+"an earlier run\n"+endMark+"after\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	out, said, err := runCommand(t, "-without", "nginx,distribution", "-pairs", "1", "-during", "10ms", "-divide", fmt.Sprint(small),
		"-dir", dir, "-write", page, "-rival", fmt.Sprintf("scripted=%s,pid=%d", up.URL, up.process.pid()))
	if err != nil {
		t.Fatalf("%v\n%s", err, said)
	}
	for _, want := range []string{
		`warm blob +CPU +[\d.]+ s/GiB +scripted +[\d.]+ s/GiB +[\d.]+ x `,
		` +requests upstream +0 +0: yes`,
		`warm manifest by digest +CPU a request +[\d.]+ us +scripted +[\d.]+ us +[\d.]+ x `,
		`fresh tag +CPU a request +[\d.]+ us +scripted +[\d.]+ us +[\d.]+ x `,
		`cold pull, 256 MiB at 100 MB/s +wall +[\d.]+ s +direct +[\d.]+ s +[\d.]+ x `,
		` +bytes upstream / content +1.000 x +1.000 x: yes`,
		`cold blob, 128 MiB, CDN of 16 MiB/s a connection +wall +[\d.]+ s +direct`,
		` +tokens +1 +<= 1: yes`,
		` +GETs of manifests +2 +<= 2: yes`,
		` +peak memory +[\d.]+ MiB `,
		`beside a slow one +time beside it / time alone +[\d.]+ x `,
	} {
		if !regexp.MustCompile(want).MatchString(out) {
			t.Errorf("no line %q in\n%s", want, out)
		}
	}
	if regexp.MustCompile(`requests upstream .*: no`).MatchString(out) {
		t.Errorf("warm work asked upstream:\n%s", out)
	}
	if c, err := splitCores(); err != nil || len(c.server) > 0 && !strings.Contains(out, "servers on processor") {
		t.Errorf("where the servers were is not told: %v\n%s", err, out)
	}
	if got, err := allowed(up.process.pid()); err != nil || len(got) != runtime.NumCPU() {
		t.Errorf("the rival is left on %v, %v", got, err)
	}
	counted, err := up.count()
	if err != nil || counted.all() < 4 {
		t.Errorf("the rival was asked %d times, %v", counted.all(), err)
	}
	written, err := os.ReadFile(page)
	if err != nil || !strings.HasPrefix(string(written), "# Page\n\n"+beginMark) || !strings.HasSuffix(string(written), endMark+"after\n") ||
		!strings.Contains(string(written), "| fresh tag | CPU a request | ") || strings.Contains(string(written), "an earlier run") {
		t.Errorf("the page is\n%s%v", written, err)
	}
	left, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil || len(left) != 1 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// A rival with other content is rejected.
func TestRunOtherContent(t *testing.T) {
	t.Parallel()
	b := &bench{dir: t.TempDir()}
	up, err := b.startUpstream(t.Context(), upstreamOptions{open: true}, warmContent(1000).spec)
	if err != nil {
		t.Fatal(err)
	}
	defer up.stop()
	_, said, err := runCommand(t, "-without", "nginx,distribution", "-only", "tag", "-divide", fmt.Sprint(small),
		"-dir", t.TempDir(), "-rival", fmt.Sprintf("scripted=%s,pid=%d", up.URL, up.process.pid()))
	if err == nil || !strings.Contains(said, "it is not the content that is asked for; it must serve what") {
		t.Errorf("%v: %s", err, said)
	}
}

func TestOptions(t *testing.T) {
	t.Parallel()
	here := os.Getpid()
	for args, want := range map[string]string{
		"-only tag,nonsense":                                    "-only nonsense: there are warm-blob, ",
		"-only tag -write x":                                    "-write is for a whole run",
		"-pairs 0":                                              "must be 1 at least",
		"nonsense":                                              `what is "nonsense"?`,
		"-rival nonsense":                                       "want NAME=http://HOST:PORT,pid=PID",
		"-rival a=http://127.0.0.1:1":                           "want NAME=http://HOST:PORT,pid=PID",
		"-rival a=http://127.0.0.1,pid=1":                       "want NAME=http://HOST:PORT,pid=PID",
		"-rival a=ftp://127.0.0.1:1,pid=1":                      "want NAME=http://HOST:PORT,pid=PID",
		"-rival a=http://127.0.0.1:1,pid=-1":                    "want NAME=http://HOST:PORT,pid=PID",
		"-rival a=http://127.0.0.1:1,pid=4194305":               "no process 4194305",
		fmt.Sprintf("-rival a=http://192.0.2.1:1,pid=%d", here): "it must be on this machine",
		"push": "want bench push URL",
	} {
		err := run(context.Background(), strings.Fields(args), nil, nil, new(bytes.Buffer))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %q", args, err, want)
		}
	}
	o, err := parseOptions([]string{"-rival", fmt.Sprintf("a=http://127.0.0.1:1,pid=%d", here)}, new(bytes.Buffer))
	if err != nil || len(o.rivals) != 1 || o.rivals[0].name != "a" || o.rivals[0].pid != here || o.rivals[0].url.Host != "127.0.0.1:1" {
		t.Errorf("got %+v, %v", o.rivals, err)
	}
}
