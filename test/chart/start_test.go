package chart

import (
	"bufio"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	core "k8s.io/api/core/v1"
)

// TestPod_Starts runs the real cachalot as its container does, and sends the requests of the
// probes and of "helm test".
func TestPod_Starts(t *testing.T) {
	for _, name := range []string{"defaults", "made secrets", "own certificate", "admin for itself"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			// The test uses free ports in place of the container's.
			r := render(t, "mirror", choices()[name].values)
			p := newPod(t, r)
			file := regexp.MustCompile(`listen: .*:500[01]"?`).ReplaceAllString(config(t, r), `listen: "127.0.0.1:0"`)
			p.write(t, p.container.Args[2], file)
			cmd := p.command(t, slices.Clone(p.container.Args)...)
			stderr, err := cmd.StderrPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			stop := time.AfterFunc(2*time.Minute, func() { _ = cmd.Process.Kill() })
			defer stop.Stop()
			lines := bufio.NewScanner(stderr)
			var text strings.Builder
			var serving []string
			for serving == nil && lines.Scan() {
				fmt.Fprintln(&text, lines.Text())
				serving = regexp.MustCompile(`"registry_mirror":"([^"]+)","admin":"([^"]+)"`).FindStringSubmatch(lines.Text())
			}
			if serving == nil {
				t.Fatalf("%v:\n%s", cmd.Wait(), text.String())
			}
			for what, probe := range map[string]*core.Probe{"startup": p.container.StartupProbe, "liveness": p.container.LivenessProbe, "readiness": p.container.ReadinessProbe} {
				if probe.Exec != nil {
					args := probe.Exec.Command[1:]
					args[2] = strings.Replace(args[2], "http://127.0.0.1:5001", serving[2], 1)
					if out, err := p.command(t, args...).CombinedOutput(); err != nil || probe.Exec.Command[0] != "/cachalot" {
						t.Errorf("%s: %v\n%s", what, err, out)
					}
					continue
				}
				if probe.HTTPGet.Port.StrVal != "admin" {
					t.Errorf("%s is at %s", what, probe.HTTPGet.Port.StrVal)
				}
				get(t, serving[2]+probe.HTTPGet.Path)
			}
			for _, c := range all[*core.Pod](r)[0].Spec.Containers {
				args := slices.Clone(c.Args)
				args[2] = regexp.MustCompile(`^https?://mirror-cachalot(-headless)?:500[01]`).ReplaceAllString(args[2], serving[map[string]int{"clients": 1, "admin": 2}[c.Name]])
				test := p.command(t, args...)
				for _, e := range c.Env {
					test.Env = append(test.Env, e.Name+"="+p.root+e.Value)
				}
				if out, err := test.CombinedOutput(); err != nil {
					t.Errorf("helm test, %s: %v\n%s", c.Name, err, out)
				}
			}
			if name == "made secrets" {
				// Kubernetes does this after an upgrade. cachalot checks the file every 10 s.
				p.write(t, p.container.Args[2], file+"\nsend_timeout: 2m\n")
				reloaded := false
				for !reloaded && lines.Scan() {
					fmt.Fprintln(&text, lines.Text())
					reloaded = strings.Contains(lines.Text(), `"msg":"configuration reloaded"`)
				}
				if !reloaded {
					t.Errorf("a changed configuration was not reloaded:\n%s", text.String())
				}
			}
			if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
				t.Fatal(err)
			}
			if _, err := io.Copy(&text, stderr); err != nil {
				t.Error(err)
			}
			if err := cmd.Wait(); err != nil {
				t.Errorf("%v\n%s", err, text.String())
			}
		})
	}
}

func get(t *testing.T, url string) {
	t.Helper()
	resp, err := http.Get(url) //nolint:noctx // loopback
	if err != nil {
		t.Error(err)
		return
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		t.Errorf("%s: %s", url, resp.Status)
	}
}
