package admin

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/cachalot-registry/cachalot/proxy"
	"github.com/cachalot-registry/cachalot/upstream"
	ut "github.com/cachalot-registry/cachalot/upstream/upstreamtest"
)

// Each operation is in the document and in the code, with the same parameters. The
// responses of this test contain each field of the document.
func TestAPIDocument(t *testing.T) {
	t.Parallel()
	metrics := upstream.NewMetrics()
	up := ut.New(t, ut.Options{Quota: 50, Username: "bob", Password: "canary", Auth: ut.Bearer, AnonymousToo: true})
	img := up.AddImage("library/app", "1", ut.NewImage(1, 20_000, 30_000))
	artifact := ut.Subject(img.Index.Descriptor, "application/x-test")
	up.AddManifest("library/app", artifact, "signature")
	resting := ut.New(t, ut.Options{})
	resting.Fault(ut.Match{}, ut.Status(http.StatusServiceUnavailable, "Retry-After", "60"))
	limited := ut.New(t, ut.Options{})
	limited.Fault(ut.Match{Op: ut.HeadManifest}, ut.Status(http.StatusTooManyRequests, "Ratelimit-Limit", "100;w=21600", "Ratelimit-Remaining", "0"))
	hub := counted(t, "docker.io", []string{up.URL}, metrics, func(c *upstream.Config) {
		c.Accounts = []upstream.Account{{Username: "bob", Password: "canary"}}
	})
	yes, day := true, 24*time.Hour
	m := &mirror{t: t, dir: t.TempDir(), aliases: map[string][]string{"docker.io": {"hub"}}, hosts: map[string][]string{"docker.io": {"hub.example"}}}
	m.start(func(c *proxy.Config) {
		c.Rules = []proxy.Rule{{Match: []string{"docker.io/library/app"}, Pin: &yes}, {Match: []string{"docker.io/acme/**"}, KeepFor: &day}}
		c.Unlisted = func(name string) (*upstream.Registry, error) {
			return counted(t, name, []string{limited.URL}, metrics, func(c *upstream.Config) { c.Unlisted = true }), nil
		}
	}, hub, counted(t, "quay.io", []string{resting.URL}, metrics), counted(t, "gcr.io", []string{limited.URL}, metrics))
	t.Cleanup(m.stop)
	a := newAdmin(t, m, metrics, nil)

	m.pullAll("library/app", "1", img)
	m.want(m.get("/v2/library/app/manifests/signature"), artifact)
	m.settle()
	up.AddBlob("acme/tool", img.Layers[1])
	m.want(m.get("/v2/acme/tool/blobs/"+img.Layers[1].Digest.String()), img.Layers[1])
	for _, tag := range []string{"1", "2", "3"} {
		m.get("/v2/quay.io/acme/x/manifests/" + tag)
	}
	m.get("/v2/gcr.io/acme/x/manifests/1")
	m.get("/v2/stranger.example/acme/x/manifests/1") // an unlisted registry at a refused address
	temporary := ut.NewContent("", ut.Random(9, 5000))
	up.AddBlob("acme/tool", temporary)
	m.want(m.get("/v2/acme/tool/blobs/"+temporary.Digest.String()), temporary)

	m.settle()
	release := make(chan struct{})
	long := ut.NewContent("", ut.Random(10, 500_000))
	up.AddBlob("library/app", long)
	up.Fault(ut.Match{Op: ut.GetBlob, Times: 1}, ut.StallAfter(100_000, release))
	filling, err := m.begin(t.Context(), http.MethodGet, "/v2/library/app/blobs/"+long.Digest.String())
	if err != nil {
		t.Fatal(err)
	}
	defer filling.Body.Close()
	var fills FillsAnswer
	a.get("fills", &fills)
	if len(fills.Fills) != 1 || fills.Fills[0].Digest != long.Digest || *fills.Fills[0].Size != long.Size || fills.Fills[0].Readers != 1 ||
		fills.Fills[0].Connections != 1 || fills.Fills[0].State != "downloading" || fills.Fills[0].Done > 100_000 || fills.Fills[0].Name != "docker.io/library/app" {
		t.Errorf("%+v", fills)
	}
	close(release)
	if _, err := io.Copy(io.Discard, filling.Body); err != nil {
		t.Fatal(err)
	}
	m.settle()

	var st StatsAnswer
	a.get("stats", &st)
	// Index, manifest, config and two layers; an artifact and two more blobs.
	if st.Storage.Blobs != 8 || st.Storage.UnlinkedBlobs != 0 || st.Traffic.ServedBytes == 0 || st.Traffic.SavedBytes != st.Traffic.ServedBytes-st.Traffic.FetchedBytes {
		t.Errorf("%+v %+v", st.Storage, st.Traffic)
	}
	var ups UpstreamsAnswer
	a.get("upstreams", &ups)
	states := map[string]string{}
	for _, u := range ups.Upstreams {
		states[u.Name] = u.State
		if u.Name == "docker.io" && (!slices.Equal(u.Aliases, []string{"hub"}) || !slices.Equal(u.Hosts, []string{"hub.example"}) || !u.Default ||
			u.URLs[0].Accounts[0].Name != "bob" || u.URLs[0].Accounts[0].Limit == nil || *u.URLs[0].Accounts[0].Limit != 50) {
			t.Errorf("%+v", u)
		}
	}
	if want := map[string]string{"docker.io": "ok", "quay.io": "failing", "gcr.io": "limited", "stranger.example": "ok"}; !maps.Equal(states, want) {
		t.Errorf("%v, want %v", states, want)
	}
	var repos RepositoriesAnswer
	a.get("repositories?limit=1", &repos)
	if len(repos.Repositories) != 1 || repos.Repositories[0].Name != "docker.io/acme/tool" || repos.Repositories[0].Blobs != 2 || repos.Next == "" {
		t.Errorf("%+v", repos)
	}
	a.get("repositories?cursor="+repos.Next, &repos)
	if len(repos.Repositories) != 1 || repos.Repositories[0].Name != "docker.io/library/app" || repos.Repositories[0].Tags != 2 || !repos.Repositories[0].Pinned {
		t.Errorf("%+v", repos)
	}
	var tags TagsAnswer
	a.get("tags?repository=app&limit=1", &tags)
	if len(tags.Tags) != 1 || tags.Tags[0].Tag != "1" || tags.Tags[0].Digest != img.Index.Digest || tags.Tags[0].State != "fresh" || tags.Next == "" {
		t.Errorf("%+v", tags)
	}
	next := tags.Next
	tags = TagsAnswer{}
	a.get("tags?repository=app&cursor="+next, &tags)
	if len(tags.Tags) != 1 || tags.Tags[0].Tag != "signature" || tags.Next != "" {
		t.Errorf("%+v", tags)
	}
	var blobs BlobsAnswer
	seen := map[digest.Digest]bool{}
	for next := ""; ; next = "&cursor=" + blobs.Next {
		blobs = BlobsAnswer{}
		a.get("blobs?limit=2"+next, &blobs)
		for _, b := range blobs.Blobs {
			seen[b.Digest] = true
		}
		if blobs.Next == "" {
			break
		}
	}
	if int64(len(seen)) != st.Storage.Blobs {
		t.Errorf("%d blobs listed, of %d", len(seen), st.Storage.Blobs)
	}
	a.get("blobs?sort=size&limit=1", &blobs)
	if len(blobs.Blobs) != 1 || blobs.Blobs[0].Digest != long.Digest {
		t.Errorf("%+v", blobs)
	}
	a.get("blobs?sort=last_used&repository=docker.io/acme/tool&min_size=10KiB", &blobs)
	if len(blobs.Blobs) != 1 || blobs.Blobs[0].Digest != img.Layers[1].Digest || len(blobs.Blobs[0].Links) != 2 || blobs.Blobs[0].Uses != 1 {
		t.Errorf("%+v", blobs)
	}
	var one BlobAnswer
	a.get("blob?digest="+temporary.Digest.String(), &one)
	if one.Expires.IsZero() || one.Pinned || one.Size != 5000 || one.Bytes != 8192 || one.Links[0].Name != "docker.io/acme/tool" {
		t.Errorf("%+v", one)
	}
	a.get("blob?digest="+img.Index.Digest.String(), &one)
	if !one.Pinned || one.Kind != "manifest" || one.Links[0].MediaType != img.Index.MediaType {
		t.Errorf("%+v", one)
	}
	var look ImageAnswer
	a.get("image?name=app:1", &look)
	if !look.Complete || look.Digest != img.Index.Digest || len(look.Manifests) != 1 || look.Manifests[0].Platform != "linux/amd64" ||
		len(look.Manifests[0].Layers) != 2 || look.Size != img.Size() || look.StoredSize != look.Size || !look.Pinned {
		t.Errorf("%+v", look)
	}
	a.get("image?name=app:signature", &look)

	a.post("pins", `{"match": "docker.io/library/other", "comment": "why"}`, http.StatusCreated, nil)
	var pins PinsAnswer
	a.get("pins", &pins)
	a.ask(http.MethodDelete, "pins?match=docker.io/library/other", "", nil)
	if err := os.WriteFile(blobPath(m, temporary.Digest), make([]byte, 5000), 0o600); err != nil {
		t.Fatal(err)
	}
	var verified VerifyEvent
	a.post("verify", `{"dry_run": true}`, http.StatusOK, &verified)
	a.post("verify", `{}`, http.StatusOK, &verified)
	if len(verified.Damaged) != 1 || verified.Damaged[0].Digest != temporary.Digest.String() || verified.Damaged[0].Quarantine == "" {
		t.Errorf("%+v", verified)
	}
	var warmed WarmEvent
	a.post("warm", `{"images": ["app:1", "app:none"], "platforms": ["linux/amd64"]}`, http.StatusOK, &warmed)
	if warmed.Images != 2 || warmed.ImagesDone != 2 || warmed.ImagesFailed != 1 || warmed.BlobsFetched != 0 || warmed.Done != warmed.Size {
		t.Errorf("%+v", warmed)
	}
	a.post("purge", `{"repository": "docker.io/acme/tool", "dry_run": true}`, http.StatusOK, nil)
	a.refused(http.MethodGet, "blob?digest=x", "", http.StatusUnprocessableEntity, "invalid")
	a.refused(http.MethodGet, "stats?x=1", "", http.StatusBadRequest, "unknown_parameter")
	if status := a.ask(http.MethodGet, "openapi.yaml", "", nil); status != http.StatusOK {
		t.Error(status)
	}

	described := map[string][]string{}
	for path, item := range a.doc.at("paths").(map[string]any) {
		for method, op := range item.(map[string]any) {
			params := []string{}
			list, _ := op.(map[string]any)["parameters"].([]any)
			for _, p := range list {
				p := p.(map[string]any)
				if ref, ok := p["$ref"].(string); ok {
					p = a.doc.at("components", "parameters", ref[strings.LastIndex(ref, "/")+1:]).(map[string]any)
				}
				params = append(params, p["name"].(string))
			}
			described[strings.ToUpper(method)+" "+path[1:]] = params
		}
	}
	for _, r := range newAPI(Config{}, nil).routes {
		name := r.method + " " + r.path
		if params, ok := described[name]; !ok || !slices.Equal(params, append([]string{}, r.params...)) {
			t.Errorf("%s has the parameters %v, the document says %v", name, r.params, params)
		}
		delete(described, name)
	}
	if len(described) > 0 {
		t.Errorf("the document has what there is not: %v", described)
	}
	for name, schema := range a.doc.at("components", "schemas").(map[string]any) {
		properties, _ := schema.(map[string]any)["properties"].(map[string]any)
		for field := range properties {
			if _, ok := a.doc.seen[name+"."+field]; !ok && !strings.HasSuffix(name, "Request") && !rare()[name+"."+field] {
				t.Errorf("no answer has had %s.%s", name, field)
			}
		}
	}
	for _, line := range a.audits() {
		if strings.Contains(fmt.Sprint(line), "canary") {
			t.Errorf("a secret in %v", line)
		}
	}
}

// rare are fields that the scenario does not cause.
func rare() map[string]bool {
	return map[string]bool{
		"URL.slow_until":    true, // a body that trickles for timeouts.progress
		"VerifyEvent.error": true, // a disk read that fails
	}
}

func blobPath(m *mirror, d digest.Digest) string {
	return filepath.Join(m.dir, "blobs", d.Algorithm().String(), d.Encoded()[:2], d.Encoded())
}

// Which requests may change something, by address, token and header.
func TestAPIGuard(t *testing.T) {
	t.Parallel()
	const secret = "canary-0123456789abcdef"
	token := func(c *Config) { c.Token = func() (string, string, error) { return "admin.token", secret, nil } }
	public := func(c *Config) { c.Loopback = false }
	both := func(c *Config) { token(c); public(c) }
	broken := func(c *Config) {
		c.Token = func() (string, string, error) { return "admin.token_file", "", os.ErrNotExist }
	}
	const read, change = "GET stats", "POST purge"
	for _, test := range []struct {
		name   string
		change func(*Config)
		what   string
		header []string
		status int
		code   string
	}{
		{"read", nil, read, nil, 200, ""},
		{"read, elsewhere", public, read, []string{"Host", "10.0.0.1:5001"}, 200, ""},
		{"read, rebound", nil, read, []string{"Host", "evil.example:5001"}, 421, "wrong_host"},
		{"read, rebound elsewhere", public, read, []string{"Host", "evil.example:5001"}, 421, "wrong_host"},
		{"read, from a page", nil, read, []string{"Origin", "https://evil.example"}, 403, "cross_origin"},
		{"read by localhost", nil, read, []string{"Host", "localhost:5001"}, 200, ""},
		{"read, wrong token", token, read, []string{"Authorization", "Bearer x"}, 200, ""},
		{"change", nil, change, nil, 404, "not_stored"},
		{"change by localhost", nil, change, []string{"Host", "localhost:5001"}, 404, "not_stored"},
		{"change by IPv6", nil, change, []string{"Host", "[::1]:5001"}, 404, "not_stored"},
		{"change, rebound", nil, change, []string{"Host", "evil.example:5001"}, 421, "wrong_host"},
		{"change, rebound to a name of loopback", nil, change, []string{"Host", "127.0.0.1.evil.example"}, 421, "wrong_host"},
		{"change, from a page", nil, change, []string{"Origin", "https://evil.example"}, 403, "cross_origin"},
		{"change, from a page that hides", nil, change, []string{"Origin", "null"}, 403, "cross_origin"},
		{"change, from another page", nil, change, []string{"Sec-Fetch-Site", "cross-site"}, 403, "cross_origin"},
		{"change, from a page on another port", nil, change, []string{"Sec-Fetch-Site", "same-site"}, 403, "cross_origin"},
		{"change, by a form", nil, change, []string{"Content-Type", "text/plain"}, 415, "not_json"},
		{"change, on all addresses", public, change, nil, 403, "token_needed"},
		{"change without the token", token, change, nil, 401, "token_needed"},
		{"change with another token", token, change, []string{"Authorization", "Bearer " + secret + "x"}, 401, "wrong_token"},
		{"change with a part of it", token, change, []string{"Authorization", "Bearer canary"}, 401, "wrong_token"},
		{"change with it as a password", token, change, []string{"Authorization", "Basic " + secret}, 401, "token_needed"},
		{"change with the token", token, change, []string{"Authorization", "Bearer " + secret}, 404, "not_stored"},
		{"change with the token, elsewhere", both, change, []string{"Authorization", "bearer " + secret, "Host", "mirror.example"}, 404, "not_stored"},
		{"change, unreadable token", broken, change, nil, 500, "no_token"},
		{"read, unreadable token", broken, read, nil, 200, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			up := ut.New(t, ut.Options{})
			a := newAdmin(t, newMirror(t, nil, registry(t, "docker.io", up.URL)), nil, test.change)
			method, path, _ := strings.Cut(test.what, " ")
			body := ""
			if method == http.MethodPost {
				body = `{"image": "app:1"}`
			}
			var p Problem
			if status := a.ask(method, path, body, &p, test.header...); status != test.status || p.Code != test.code {
				t.Errorf("%d %+v, want %d %s", status, p, test.status, test.code)
			}
			lines := a.audits()
			if (method == http.MethodPost) != (len(lines) == 1) {
				t.Errorf("%d audit lines", len(lines))
			}
			if text := a.log.String() + fmt.Sprint(lines) + p.Detail; strings.Contains(text, "canary") {
				t.Errorf("the token is in %s", text)
			}
		})
	}
}

func TestAPIAudit(t *testing.T) {
	t.Parallel()
	up := ut.New(t, ut.Options{})
	img := up.AddImage("library/app", "1", ut.NewImage(1, 1000))
	m := newMirror(t, nil, registry(t, "docker.io", up.URL))
	a := newAdmin(t, m, nil, func(c *Config) {
		c.Token = func() (string, string, error) { return "admin.token_file", "0123456789abcdef", nil }
	})
	m.pullAll("library/app", "1", img)
	show := []string{"Authorization", "Bearer 0123456789abcdef", "X-Request-Id", "id-1"}
	a.ask(http.MethodGet, "stats", "", nil)
	a.ask(http.MethodPost, "purge", `{"image": "app:1"}`, nil, show...)
	a.ask(http.MethodPost, "pins", `{"match": "app"}`, nil, show...)
	a.ask(http.MethodPost, "purge", `{"image": "app:1"}`, nil)
	a.ask(http.MethodPost, "warm", `{"images": ["app:1"], "platforms": ["all"]}`, nil, show...)
	var got []string
	for _, l := range a.audits() {
		if !strings.HasPrefix(fmt.Sprint(l["remote"]), "127.0.0.1:") {
			t.Errorf("remote %v", l["remote"])
		}
		got = append(got, fmt.Sprintf("%v %v by %v %v: %v %v blobs %v fetched", l["action"], l["target"], l["token"], l["request_id"], l["outcome"], l["blobs"], l["blobs_fetched"]))
	}
	want := []string{
		"post purge docker.io/library/app:1 by admin.token_file id-1: done 4 blobs <nil> fetched",
		"post pins docker.io/library/app by admin.token_file id-1: done <nil> blobs <nil> fetched",
		"post purge  by none <nil>: refused <nil> blobs <nil> fetched",
		"post warm app:1 by admin.token_file id-1: done <nil> blobs 4 fetched",
	}
	if !slices.Equal(got, want) {
		t.Errorf("%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func TestAPIRequests(t *testing.T) {
	t.Parallel()
	up := ut.New(t, ut.Options{})
	a := newAdmin(t, newMirror(t, nil, registry(t, "docker.io", up.URL)), nil, nil)
	longest := strings.Repeat("a.", 126) + "a:65535/" + strings.Repeat("a", 255) + ":" + strings.Repeat("t", 128) + "@sha512:" + strings.Repeat("0", 128)
	for _, test := range []struct {
		method, path, body string
		status             int
		code, parameter    string
	}{
		{"GET", "nothing", "", 404, "no_such_endpoint", ""},
		{"DELETE", "stats", "", 405, "method_not_allowed", ""},
		{"OPTIONS", "purge", "", 405, "method_not_allowed", ""},
		{"GET", "blobs?limit=0", "", 422, "invalid", "limit"},
		{"GET", "blobs?limit=1001", "", 422, "invalid", "limit"},
		{"GET", "blobs?limit=1&limit=2", "", 400, "unknown_parameter", ""},
		{"GET", "blobs?%zz", "", 400, "bad_query", ""},
		{"GET", "blobs?cursor=!", "", 422, "invalid", "cursor"},
		{"GET", "blobs?cursor=eA", "", 422, "invalid", "cursor"},
		{"GET", "blobs?sort=x", "", 422, "invalid", "sort"},
		{"GET", "blobs?sort=size&cursor=eA", "", 422, "invalid", "cursor"},
		{"GET", "blobs?min_size=5%25", "", 422, "invalid", "min_size"},
		{"GET", "blobs?unused_for=30d", "", 422, "invalid", "unused_for"},
		{"GET", "repositories?sort=x", "", 422, "invalid", "sort"},
		{"GET", "tags", "", 422, "invalid", "repository"},
		{"GET", "tags?repository=app:1", "", 422, "invalid", "repository"},
		{"GET", "tags?repository=app", "", 404, "not_stored", ""},
		{"GET", "image?name=UPPER", "", 422, "invalid", "name"},
		{"GET", "image?name=app", "", 404, "not_stored", ""},
		{"GET", "image?name=" + url.QueryEscape(longest), "", 404, "not_stored", ""},
		{"GET", "image?name=" + strings.Repeat("a", 1025), "", 422, "invalid", "name"},
		{"GET", "blob?digest=sha256:" + strings.Repeat("0", 64), "", 404, "not_stored", ""},
		{"POST", "purge", `{}`, 422, "invalid", "image"},
		{"POST", "purge", `{"image": "a:1", "upstream": "docker.io"}`, 422, "invalid", "image"},
		{"POST", "purge", `{"image": "a"}`, 422, "invalid", "image"},
		{"POST", "purge", `{"image": "a:1", "unused_for": "1h"}`, 422, "invalid", "unused_for"},
		{"POST", "purge", `{"unused_for": "-1h"}`, 422, "invalid", "unused_for"},
		{"POST", "purge", `{"digest": "md5:0"}`, 422, "invalid", "digest"},
		{"POST", "purge", `{"imgae": "a:1"}`, 400, "bad_body", ""},
		{"POST", "purge", `{"image": "a:1"}{}`, 400, "bad_body", ""},
		{"POST", "purge", `[`, 400, "bad_body", ""},
		{"POST", "purge", `{"image": "` + strings.Repeat("a", maxRequest) + `"}`, 413, "too_large", ""},
		{"POST", "warm", `{"images": []}`, 422, "invalid", "images"},
		{"POST", "warm", `{"images": ["a"], "platforms": ["linux"]}`, 422, "invalid", "platforms[0]"},
		{"POST", "warm", `{"images": ["a", "quay.io/x/y"]}`, 422, "invalid", "images[1]"},
	} {
		p := a.refused(test.method, test.path, test.body, test.status, test.code)
		if p.Parameter != test.parameter {
			t.Errorf("%s %s: parameter %q, want %q", test.method, test.path, p.Parameter, test.parameter)
		}
	}
	up.WantCounts(t, nil)
}

// lines reads the events of a stream.
func lines(t *testing.T, r io.Reader) func() (WarmEvent, bool) {
	t.Helper()
	scan := bufio.NewScanner(r)
	return func() (e WarmEvent, ok bool) {
		if !scan.Scan() {
			return e, false
		}
		if err := json.NewDecoder(bytes.NewReader(scan.Bytes())).Decode(&e); err != nil {
			t.Fatal(err)
		}
		return e, true
	}
}
