//go:build e2e

package e2e

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/time/rate"
)

// The client of a registry: the mirror, or dockerd itself.
const (
	mirrorAgent = "cachalot"
	direct      = "docker"
)

// pulls makes the daemon pull an image.
func (d *daemon) pulls(t *testing.T, p published) {
	t.Helper()
	d.must(t, "pull", "--quiet", p.name)
	d.has(t, p)
}

// has compares the files in an image's layers with the pushed ones.
func (d *daemon) has(t *testing.T, p published) {
	t.Helper()
	for i, size := range p.sizes {
		sum := sha256.Sum256(payload(p.name, i, size))
		out := d.must(t, "run", "--rm", "--network", "none", p.name, "sh", "-c", fmt.Sprintf("sha256sum </data/%d", i))
		if got, _, _ := strings.Cut(out, " "); got != hex.EncodeToString(sum[:]) {
			t.Errorf("%s: /data/%d has the sum %s, want %x", p.name, i, got, sum)
		}
	}
}

// mirrorFails: the mirror is killed in the middle of a download, and starts again later. No
// pull fails. A daemon starts while the mirror is down.
func (b based) mirrorFails(t *testing.T) {
	hub := b.world.hub
	before, during, away, after := b.world.publish(t, b.base+"/before:1", 1<<20), b.world.publish(t, b.base+"/during:1", 24<<20),
		b.world.publish(t, b.base+"/away:1", 1<<20), b.world.publish(t, b.base+"/after:1", 1<<20)
	d := b.start(t, service{
		image: tailored(b.base), variables: b.variables(),
		arguments: []string{"--max-download-attempts=2"}, // of 5 attempts, after pauses of 5, 10, 15, 20 and 25 s
	})
	d.ready(t)
	d.pulls(t, before)
	askedBy(t, hub, mirrorAgent)

	b.world.line.SetLimit(6 << 20)
	t.Cleanup(func() { b.world.line.SetLimit(rate.Inf) })
	pulled := make(chan error)
	go func() {
		_, err := d.docker(t, "pull", "--quiet", during.name)
		pulled <- err
	}()
	big := during.Layers[len(during.Layers)-1]
	b.daemon.until(t, "in the middle of a download", func() error {
		if n := hub.Sent(big.Digest); n < big.Size/4 {
			return fmt.Errorf("%d bytes", n)
		}
		return nil
	})
	b.must(t, "kill", "mirror")
	b.world.line.SetLimit(rate.Inf)
	check(t, <-pulled)
	d.has(t, during)
	askedBy(t, hub, mirrorAgent, direct)

	hub.Forget()
	d.pulls(t, away)
	late := b.start(t, service{image: tailored(b.base), variables: b.variables()})
	late.ready(t)
	late.says(t, "warning: the mirror does not answer")
	late.pulls(t, away)
	askedBy(t, hub, direct)

	b.must(t, "start", "mirror")
	b.ready(t)
	hub.Forget()
	d.pulls(t, after)
	late.pulls(t, after)
	askedBy(t, hub, mirrorAgent)
	after.fetched(t, 1)
}

// secured: the mirror uses TLS with a certificate of CACHALOT_CA only, and a path in its
// URL, which dockerd 20.10 does not support.
func (b based) secured(t *testing.T) {
	p := b.world.publish(t, b.base+"/secured:1", 1<<20)
	variables := b.variables()
	variables["CACHALOT_MIRROR"] = "https://" + mirrorName
	variables["CACHALOT_CA"] = string(b.world.own.pem)
	if b.base != "docker20" {
		variables["CACHALOT_MIRROR"] += mirrorPath
	}
	d := b.start(t, service{image: tailored(b.base), variables: variables})
	d.ready(t)
	d.pulls(t, p)
	askedBy(t, b.world.hub, mirrorAgent)
}

// another: daemon.json already has a mirror that is down. dockerd starts, and uses our
// mirror if it supports hosts.toml.
func (b based) another(t *testing.T) {
	p := b.world.publish(t, b.base+"/own:1", 1<<20)
	file := filepath.Join(t.TempDir(), "daemon.json")
	check(t, os.WriteFile(file, []byte(`{"registry-mirrors": ["http://`+b.address.String()+`:9"]}`), 0o644))
	d := b.start(t, service{image: tailored(b.base), variables: b.variables(), mounts: []string{file + ":/etc/docker/daemon.json:ro"}})
	d.ready(t)
	d.pulls(t, p)
	if b.base == "docker20" {
		askedBy(t, b.world.hub, direct)
		d.says(t, "stay, and are asked for Docker Hub")
		return
	}
	askedBy(t, b.world.hub, mirrorAgent)
	d.says(t, "hosts.toml counts in their place")
}

// smallPackets: the job's network has an MTU of 1400, and dockerd's networks get the same.
func (b based) smallPackets(t *testing.T) {
	p := b.world.publish(t, b.base+"/small:1", 4<<20)
	d := b.start(t, service{image: tailored(b.base), variables: b.variables(), mtu: 1400})
	d.ready(t)
	d.pulls(t, p)
	askedBy(t, b.world.hub, mirrorAgent)
	networks := []string{"bridge"}
	if b.base != "docker20" { // its flag sets only the default network
		networks = append(networks, "own")
		d.must(t, "network", "create", "own")
	}
	for _, network := range networks {
		if mtu := d.must(t, "run", "--rm", "--network", network, p.name, "sh", "-c", "cat /sys/class/net/eth0/mtu"); mtu != "1400" {
			t.Errorf("%s: a container has an MTU of %s", network, mtu)
		}
	}
}

// proxied: with a proxy set, requests to the mirror bypass it, and those to other
// registries use it.
func (b based) proxied(t *testing.T) {
	p := b.world.publish(t, b.base+"/proxied:1", 1<<20)
	variables := b.variables()
	for _, name := range []string{"HTTP_PROXY", "HTTPS_PROXY"} {
		variables[name] = "http://" + b.world.address.String() + ":3128"
	}
	variables["NO_PROXY"] = "docker" // a job needs it to reach its service
	b.world.proxy.forget()
	d := b.start(t, service{image: tailored(b.base), variables: variables})
	d.ready(t)
	d.pulls(t, p)
	askedBy(t, b.world.hub, mirrorAgent)
	if seen := b.world.proxy.seen(); len(seen) > 0 {
		t.Errorf("the proxy was asked for %q", seen)
	}
	d.must(t, "login", "--username", user, "--password", password, privateName)
	if seen := b.world.proxy.seen(); !slices.Equal(seen, []string{privateName}) {
		t.Errorf("the proxy was asked for %q", seen)
	}
}

// plain: the job and the service use no TLS.
func (b based) plain(t *testing.T) {
	p := b.world.publish(t, b.base+"/plain:1", 1<<20)
	variables := map[string]string{"CACHALOT_MIRROR": b.mirror.url(), "DOCKER_TLS_CERTDIR": "", "DOCKER_HOST": "tcp://docker:2375"}
	d := b.start(t, service{image: tailored(b.base), variables: variables, arguments: []string{"--tls=false"}})
	out, err := d.script(t, t.TempDir(), "docker pull --quiet "+p.name)
	check(t, err)
	if !strings.HasSuffix(out, p.name) {
		t.Errorf("the job says %q", out)
	}
	askedBy(t, b.world.hub, mirrorAgent)
}

// driver: DOCKER_DRIVER=overlay2 would limit the mirror to Docker Hub. It is removed unless
// CACHALOT_KEEP_DRIVER is set.
func (l *lab) driver(t *testing.T) {
	for keep, want := range map[string]string{"": mirrorAgent, "true": direct} {
		p := l.world.publish(t, "quay.io/driver/kept"+keep+":1", 1<<20)
		variables := l.variables()
		variables["DOCKER_DRIVER"], variables["CACHALOT_KEEP_DRIVER"] = "overlay2", keep
		d := l.start(t, service{image: tailored("docker29"), variables: variables})
		d.ready(t)
		d.pulls(t, p)
		askedBy(t, l.world.quay, want)
	}
}

// rootless: RootlessKit runs dockerd as a normal user. The service gets its own
// /dev/net/tun, in case that user may not open the machine's.
func (l *lab) rootless(t *testing.T) {
	tun := filepath.Join(t.TempDir(), "tun")
	must(t, nil, "mknod", "--mode=666", tun, "c", "10", "200")
	hub, quay := l.world.publish(t, "rootless/hub:1", 1<<20), l.world.publish(t, "quay.io/rootless/quay:1", 1<<20)
	d := l.start(t, service{image: tailored("rootless"), variables: l.variables(), mounts: []string{tun + ":/dev/net/tun"}})
	d.ready(t)
	for _, p := range []published{hub, quay} {
		d.pulls(t, p)
		askedBy(t, p.from, mirrorAgent)
	}
}

// says checks that the service's log has this text.
func (d *daemon) says(t *testing.T, part string) {
	t.Helper()
	if log := d.logs(t); !strings.Contains(log, part) {
		t.Errorf("the log of the service does not have %q", part)
	}
}
