package conformance

import (
	"bytes"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/cachalot-registry/cachalot/test/cachalotd"
	"github.com/cachalot-registry/cachalot/upstream/upstreamtest"
)

// repository is the repository that the suite reads.
const repository = "conformance/repo1"

// olareg is a real registry in memory, in its own process.
type olareg struct {
	URL string

	cmd   *exec.Cmd
	log   *bytes.Buffer // complete when ended is closed
	ended chan struct{}
}

// startOlareg runs a registry until the test ends or kills it.
func startOlareg(t *testing.T) *olareg {
	t.Helper()
	address := upstreamtest.PortFor(t)
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		t.Fatal(err)
	}
	r := &olareg{URL: "http://" + address, log: &bytes.Buffer{}, ended: make(chan struct{})}
	r.cmd = exec.Command(program(t, "olareg"), "serve", "--addr", host, "--port", port, "--store-type", "mem", //nolint:noctx // killed by the test
		"--api-delete", "--api-blob-delete", "--api-sparse-image", "--api-sparse-index")
	r.cmd.Stdout, r.cmd.Stderr = r.log, r.log
	r.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := r.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(r.ended)
		_ = r.cmd.Wait() // the log has the reason unless the test kills it
	}()
	t.Cleanup(r.Kill)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		resp, err := cachalotd.Client().Get(r.URL + "/v2/") //nolint:noctx // loopback
		if err == nil {
			resp.Body.Close()
			return r
		}
		select {
		case <-tick.C:
		case <-r.ended:
			t.Fatalf("olareg ended before it was ready: %s", r.log)
		case <-t.Context().Done():
			t.Fatal("olareg did not become ready")
		}
	}
}

// Kill sends SIGKILL and waits for the end.
func (r *olareg) Kill() {
	_ = r.cmd.Process.Kill() // it may have ended
	<-r.ended
}

// content is the content of a repository, by name.
type content struct {
	tags                       map[string]digest.Digest
	manifests, blobs, subjects []string
}

// load lets the suite push all its content, without deletes.
func load(t *testing.T, relay *upstreamtest.Relay) content {
	t.Helper()
	if o := runSuite(t, "load, the registry itself", relay.URL, noDeletes()); o.failed > 0 {
		t.Fatalf("the registry fails the suite by itself: %v", o.failures)
	}
	c := content{tags: map[string]digest.Digest{}}
	var tags struct{ Tags []string }
	pullJSON(t, relay.URL, "tags/list", &tags)
	for _, tag := range tags.Tags {
		_, header := pull(t, relay.URL, "manifests/"+tag)
		c.tags[tag] = digest.Digest(header)
	}
	for _, q := range relay.Requests() {
		if q.Status != http.StatusCreated {
			continue
		}
		path, ok := strings.CutPrefix(q.Path, "/v2/"+repository+"/")
		if !ok {
			continue
		}
		if manifest, ok := strings.CutPrefix(path, "manifests/"); ok {
			if strings.Contains(manifest, ":") { // also by tag
				c.manifests = append(c.manifests, manifest)
			}
			continue
		}
		c.blobs = slices.Concat(c.blobs, q.Query["digest"], q.Query["mount"])
	}
	for _, m := range c.manifests {
		var manifest struct{ Subject *ocispec.Descriptor }
		pullJSON(t, relay.URL, "manifests/"+m, &manifest)
		if manifest.Subject != nil {
			c.subjects = append(c.subjects, manifest.Subject.Digest.String())
		}
	}
	for _, list := range []*[]string{&c.manifests, &c.blobs, &c.subjects} {
		slices.Sort(*list)
		*list = slices.Compact(*list)
	}
	for _, kind := range [][]string{tags.Tags, c.manifests, c.blobs, c.subjects} {
		if len(kind) == 0 {
			t.Fatalf("the suite has left nothing of a kind: %+v", c)
		}
	}
	t.Logf("loaded: %d tags, %d manifests, %d blobs, %d subjects of referrers", len(c.tags), len(c.manifests), len(c.blobs), len(c.subjects))
	return c
}

// pullAll pulls everything, and compares the content and its digest header with the digest.
// The suite does not do that for content from before its run.
func (c content) pullAll(t *testing.T, name, registry string) {
	t.Helper()
	check := func(path string, d digest.Digest) {
		t.Helper()
		body, header := pull(t, registry, path)
		if got := d.Algorithm().FromBytes(body); got != d || header != d.String() {
			t.Errorf("%s: %s is %s, its header %q; want %s", name, path, got, header, d)
		}
	}
	for tag, d := range c.tags {
		check("manifests/"+tag, d)
	}
	for _, d := range c.manifests {
		check("manifests/"+d, digest.Digest(d))
	}
	for _, d := range c.blobs {
		check("blobs/"+d, digest.Digest(d))
	}
}

// pull gets content of a repository and its digest header.
func pull(t *testing.T, registry, path string) (body []byte, header string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, registry+"/v2/"+repository+"/"+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Accept", ocispec.MediaTypeImageManifest+", "+ocispec.MediaTypeImageIndex)
	resp, err := cachalotd.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err = io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("%s: %s, %v", path, resp.Status, err)
	}
	return body, resp.Header.Get("Docker-Content-Digest")
}

// pullJSON gets content of a repository and decodes it.
func pullJSON(t *testing.T, registry, path string, v any) {
	t.Helper()
	body, _ := pull(t, registry, path)
	if err := json.Unmarshal(body, v); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
}
