//go:build e2e

package e2e

import (
	"encoding/json"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cachalot-registry/cachalot/upstream/distributiontest"
	"github.com/cachalot-registry/cachalot/upstream/upstreamtest"
)

// manners describe how a client handles failures.
type manners struct {
	types mediaTypes
	open  func(*testing.T, *mirror) client
	// registry is the registry's part of the image's name for the client.
	registry func(trouble) string
	falls    map[kind]bool // kinds of trouble in which it uses the fallback
	// hubOnly: it uses the fallback only for Docker Hub, not for names that start with the mirror.
	hubOnly bool
	// resumes: it keeps the received part of a blob, and fetches only the rest from the
	// fallback. If that part is wrong, the blob is wrong.
	resumes bool
	limit
	slow map[string]limit // other limits for some troubles
	// volunteers: it sends its credential for the mirror's host without a challenge.
	volunteers bool
}

// limit is the maximum cost of one pull.
type limit struct {
	asks  int // requests to the mirror
	again int // for one manifest or blob, with its ranges
	// Duration is the maximum time beyond the pulls that are served at the same time, so
	// that the machine's speed does not matter.
	time.Duration
}

// servedWithin is the maximum time of a pull that is served.
const servedWithin = 5 * time.Minute

// TestStatus: upstream failures must not make a client hang, retry without end, fail if it
// has a fallback, or show its credentials. The fallback is a real registry: the server in
// hosts.toml for containerd and dockerd 29, the location for podman and the like, and a
// second mirror for dockerd 20.10 and buildkitd, whose registries are unreachable here.
func TestStatus(t *testing.T) {
	t.Parallel()
	everything := map[kind]bool{noManifest: true, noBlob: true}
	manifests := map[kind]bool{noManifest: true}
	const minute = time.Minute
	for name, with := range map[string]manners{
		// The classic pull path retries a blob for 75 s, 5 s longer each time and with two
		// requests, before it uses the fallback. The mirror also retries first.
		"docker20": {
			types: dockerTypes(), open: opened(dockerWithJSON), registry: below, falls: everything, hubOnly: true, limit: limit{10, 5, minute},
			slow: map[string]limit{"blob-fails": {17, 12, 150 * time.Second}, "blob-wrong": {16, 10, 150 * time.Second}, "blob-cut": {16, 10, 150 * time.Second}},
		},
		"docker29":       {types: ociTypes(), open: opened(dockerWithHosts), registry: withPort, falls: everything, resumes: true, limit: limit{16, 6, minute}},
		"docker29-build": {types: ociTypes(), open: opened(buildkitBuilder), registry: withPort, falls: everything, resumes: true, limit: limit{12, 6, minute}},
		"containerd":     {types: ociTypes(), open: opened(newContainerd), registry: withUnderscore, falls: everything, resumes: true, limit: limit{16, 7, minute}},
		"buildkit":       {types: ociTypes(), open: opened(newBuildkit), registry: trouble.registry, falls: everything, resumes: true, limit: limit{12, 6, minute}},
		"podman":         {types: ociTypes(), open: opened(newPodman), registry: trouble.registry, falls: manifests, limit: limit{5, 1, minute}},
		"buildah":        {types: dockerTypes(), open: opened(newBuildah), registry: trouble.registry, falls: manifests, limit: limit{5, 1, minute}},
		"skopeo":         {types: ociTypes(), open: opened(newSkopeo), registry: trouble.registry, falls: manifests, limit: limit{5, 1, minute}},
		"crane":          {types: ociTypes(), open: opened(newCrane), registry: withUnderscore, limit: limit{7, 3, minute}, volunteers: true},
		"transport":      {types: ociTypes(), open: opened(newTransport), registry: withUnderscore, limit: limit{7, 3, minute}, volunteers: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			newOrdeal(t, with).run(t)
		})
	}
}

// An invalid registry name. Clients check names in different ways. If only the
// configuration can have an invalid one, newOrdeal writes it there.
const noRegistry = "bad_name.example"

func withUnderscore(c trouble) string {
	if c.name == badName {
		return noRegistry
	}
	return c.registry()
}

func withPort(c trouble) string {
	if c.name == badName {
		return c.registry() + ":99999"
	}
	return c.registry()
}

// below is for dockerd 20.10, which mirrors only Docker Hub. An alias at the start of the
// name selects the registry in the mirror.
func below(c trouble) string {
	if c.cause == nil {
		return withUnderscore(c)
	}
	return "docker.io/" + c.name
}

// ordeal runs all troubles for one client.
type ordeal struct {
	manners
	troubles  []trouble
	upstreams []*upstreamtest.Registry
	mirror    *mirror
	tap       *tap
	elsewhere *distributiontest.Registry
	client    client
}

func newOrdeal(t *testing.T, with manners) *ordeal {
	t.Helper()
	hub := upstreamtest.New(t, upstreamtest.Options{Auth: upstreamtest.Bearer})
	o := &ordeal{
		manners: with, troubles: troubles(t, with.types), upstreams: []*upstreamtest.Registry{hub},
		elsewhere: distributiontest.New(t, distributiontest.Options{}),
		mirror: &mirror{
			timeouts:   "dial: 1s, response_header: 1s, progress: 1s",
			upstreams:  map[string]string{"docker.io": "{url: " + hub.URL + "}"},
			registries: map[string]string{},
		},
	}
	for _, c := range o.troubles {
		o.mirror.registries[c.registry()] = withUnderscore(c)
		c.publish(o.elsewhere, c.repo(), "latest")
		c.publish(o.elsewhere, c.name+"/"+c.repo(), "latest") // the name that dockerd 20.10 requests
		if c.cause == nil {
			continue
		}
		r := upstreamtest.New(t, upstreamtest.Options{Auth: upstreamtest.Bearer})
		c.add(r, c.repo(), "latest")
		c.cause(r, upstreamtest.Match{Reference: c.Layers[0].Digest.String()})
		o.upstreams = append(o.upstreams, r)
		o.mirror.upstreams[c.registry()] = "{url: " + r.URL + ", aliases: [" + c.name + "]}"
	}
	o.elsewhere.Forget()
	o.mirror.fallback = o.elsewhere.Host()
	o.mirror.open(t, forEver)
	o.tap = wiretap(t, o.mirror)
	o.mirror.login = login(t, append(slices.Collect(maps.Keys(o.mirror.registries)), o.mirror.host()))
	o.client = with.open(t, o.mirror)
	return o
}

func (o *ordeal) image(c trouble) string { return o.registry(c) + "/" + c.repo() + ":latest" }

// run pulls all images at the same time, because some are slow.
func (o *ordeal) run(t *testing.T) {
	t.Helper()
	errs, took := make([]error, len(o.troubles)), make([]time.Duration, len(o.troubles))
	var all sync.WaitGroup
	for i, c := range o.troubles {
		all.Go(func() {
			started := time.Now()
			errs[i] = o.client.pull(t, o.image(c))
			took[i] = time.Since(started)
		})
	}
	all.Wait()
	var machine time.Duration
	for i, c := range o.troubles {
		if c.kind == served {
			machine = max(machine, took[i])
		}
	}
	if machine > servedWithin {
		t.Errorf("what is served takes %s", machine)
	}
	for i, c := range o.troubles {
		o.judge(t, c, errs[i], took[i]-machine)
	}

	pings, credentials := 0, 0
	for _, a := range o.tap.heard("") {
		if a.credential {
			credentials++
		}
		if strings.Contains(a.path, "/cachalot-e2e/") {
			continue
		}
		if pings++; a.method != http.MethodGet || a.path != "/v2/" {
			t.Errorf("the mirror was asked for %s %s", a.method, a.path)
		}
	}
	if (credentials > 0) != o.volunteers {
		t.Errorf("%d requests carried a credential; whether some should: %t", credentials, o.volunteers)
	}
	if pings > len(o.troubles) {
		t.Errorf("%d pings for %d pulls", pings, len(o.troubles))
	}
	for _, r := range o.upstreams {
		for _, q := range r.Requests() {
			if strings.HasPrefix(q.Header.Get("Authorization"), "Basic ") {
				t.Errorf("a client's credential went to an upstream: %s %s", q.Method, q.Path)
			}
		}
	}
}

// judge compares a pull with its limits. longer is its time beyond that of the served pulls.
func (o *ordeal) judge(t *testing.T, c trouble, err error, longer time.Duration) {
	t.Helper()
	list := o.tap.heard("/" + c.repo() + "/")
	statuses, paths := map[int]int{}, map[string]int{}
	for _, a := range list {
		statuses[a.status]++
		paths[a.path]++
	}
	again := 0
	for _, n := range paths {
		again = max(again, n)
	}
	t.Logf("%s: %+.1fs; %d requests, up to %d for one thing; answers: %v; %v", c.name, longer.Seconds(), len(list), again, statuses, err)

	may := o.limit
	if l, ok := o.slow[c.name]; ok {
		may = l
	}
	if len(list) == 0 || len(list) > may.asks || again > may.again || longer > may.Duration {
		t.Errorf("%s: it took %.1fs longer and %d requests, %d of them for one thing; it may take %v, %d and %d",
			c.name, longer.Seconds(), len(list), again, may.Duration, may.asks, may.again)
	}
	for _, status := range []int{http.StatusUnauthorized, http.StatusForbidden, http.StatusTooManyRequests} {
		if statuses[status] > 0 {
			t.Errorf("%s: %d answers with status %d", c.name, statuses[status], status)
		}
	}
	// It is random whether the client receives wrong bytes before it uses the fallback.
	if want := o.succeeds(c); want != (err == nil) && (!o.resumes || c.name != "blob-wrong") {
		t.Errorf("%s: whether the pull should end well: %t; it ended so: %v", c.name, want, err)
	}
	if err == nil {
		o.client.holds(t, o.image(c), c.Image)
	}
	elsewhere := len(o.elsewhere.Select(upstreamtest.Match{Repo: c.repo()})) +
		len(o.elsewhere.Select(upstreamtest.Match{Repo: c.name + "/" + c.repo()}))
	if c.kind == served && elsewhere > 0 {
		t.Errorf("%s: the client asked %d times elsewhere", c.name, elsewhere)
	}
}

// succeeds reports whether the client must get the image.
func (o *ordeal) succeeds(c trouble) bool {
	switch {
	case c.kind == served:
		return true
	case o.hubOnly && c.cause == nil:
		return false
	}
	return o.falls[c.kind]
}

// login makes a folder with a config.json that has credentials for registries and Docker Hub.
func login(t *testing.T, registries []string) (folder string) {
	t.Helper()
	type auth struct {
		Auth []byte `json:"auth"`
	}
	auths := map[string]auth{}
	for _, host := range append(registries, "https://index.docker.io/v1/") {
		auths[host] = auth{[]byte(user + ":" + password)}
	}
	b, err := json.Marshal(map[string]any{"auths": auths})
	check(t, err)
	folder = t.TempDir()
	check(t, os.WriteFile(filepath.Join(folder, "config.json"), b, 0o600))
	return folder
}
