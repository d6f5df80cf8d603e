//go:build e2e

package e2e

import (
	"os"
	"testing"
	"time"

	"golang.org/x/time/rate"
)

// figures compares stock docker:dind with ours, for consecutive jobs that pull the same
// three images of Docker Hub. With CACHALOT_E2E_FIGURES it runs ten jobs, with 100 Mbit/s
// to the registries, for the table in docs/gitlab-ci.md.
func (l *lab) figures(t *testing.T) {
	jobs := 2
	if os.Getenv("CACHALOT_E2E_FIGURES") != "" {
		jobs = 10
		l.world.line.SetLimit(100e6 / 8)
		t.Cleanup(func() { l.world.line.SetLimit(rate.Inf) })
	}
	l.startMirror(t)
	images := []published{
		l.world.publish(t, "figures/node:1", 20<<20, 20<<20, 20<<20, 8<<20),
		l.world.publish(t, "figures/python:1", 30<<20, 10<<20, 5<<20),
		l.world.publish(t, "figures/golang:1", 25<<20, 5<<20),
	}
	script, size := "", int64(0)
	for _, p := range images {
		script += "docker pull --quiet " + p.name + "\n"
		for _, b := range p.Blobs() {
			size += b.Size
		}
	}
	for _, arm := range []struct {
		name, image string
		times       int // how often each blob is sent by the registry
		manifests   int // manifests sent: of each image the index, the platform's and the attestation's
	}{
		{"stock", stock("docker29"), jobs, 3 * len(images) * jobs},
		{"ours", tailored("docker29"), 1, 3 * len(images)},
	} {
		l.world.hub.Forget()
		var took []time.Duration
		for range jobs {
			start := time.Now()
			d := l.start(t, service{image: arm.image, variables: l.variables()})
			_, err := d.script(t, t.TempDir(), script)
			check(t, err)
			took = append(took, time.Since(start))
		}
		for _, p := range images {
			p.fetched(t, arm.times)
		}
		got, requests := crossed(&l.world.hub.Recorder)
		if got.Manifests != arm.manifests {
			t.Errorf("%s: the registry has sent %d manifests, want %d", arm.name, got.Manifests, arm.manifests)
			report(t, requests)
		}
		t.Logf("%s: %d jobs that pull %d MiB: %d MiB from Docker Hub, %d GETs of manifests; the 1st took %.1f s, the 2nd %.1f s, the last %.1f s",
			arm.name, jobs, size>>20, got.Bytes>>20, got.Manifests, took[0].Seconds(), took[1].Seconds(), took[jobs-1].Seconds())
	}
}
