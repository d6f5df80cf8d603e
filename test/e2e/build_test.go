//go:build e2e

package e2e

import (
	"os"
	"path/filepath"
	"testing"
	"time"
)

// TestBuild: a build's base image comes through the mirror too, with the classic
// builder and with BuildKit, and again with the upstream gone.
func TestBuild(t *testing.T) {
	t.Parallel()
	context := t.TempDir()
	file := "FROM " + image + "\nRUN [\"/bin/busybox\", \"cp\", \"/version\", \"/built\"]\n"
	check(t, os.WriteFile(filepath.Join(context, "Dockerfile"), []byte(file), 0o600))
	for name, start := range engines() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			up := hub(t)
			r := newRelease(t, ociTypes(), "one")
			r.publish(up, repository, "latest")
			up.Forget()
			m := newMirror(t, forEver, asHub(up.URL))
			for _, want := range []wire{
				{Tokens: 1, Refused: 1, Heads: 1, Manifests: 2, Blobs: 5, Bytes: r.Size()},
				{},
			} {
				e := start(t, m)
				e.build(t, "--pull", "--tag", "built", context)
				got, requests := crossed(&up.Recorder)
				if got != want {
					t.Errorf("the upstream's wire: %+v, want %+v", got, want)
					report(t, requests)
				}
				if out := e.run(t, "built", "/bin/busybox", "cat", "/built"); out != r.version {
					t.Errorf("the container says %q, want %q", out, r.version)
				}
				e.daemon.stop(t) // the next one has nothing of it
				up.Down()
				m.reload(t, shortly)
				time.Sleep(shortly)
			}
		})
	}
}
