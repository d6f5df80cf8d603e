package upstreamtest

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

func (r *Registry) serveRegistry(w http.ResponseWriter, req *http.Request) {
	if req.URL.Path == r.options.TokenPath && !r.options.TokenElsewhere {
		r.serveToken(w, req)
		return
	}
	q := parse(req)
	x := r.begin(req, q)
	maps.Copy(x.header, r.options.Header)
	x.header.Set("Docker-Distribution-Api-Version", "registry/2.0")
	challenge, ok := r.authorized(q)
	switch {
	case ok && r.spend(x):
		x.fail(http.StatusTooManyRequests, "TOOMANYREQUESTS", "the quota is spent")
	case ok:
		r.answer(x)
	default:
		x.fail(http.StatusUnauthorized, "UNAUTHORIZED", "authentication required")
		x.header.Set("WWW-Authenticate", challenge)
	}
	x.finish(w, !ok)
}

func (r *Registry) serveToken(w http.ResponseWriter, req *http.Request) {
	q := newRecord(req, Token)
	for scope := range strings.FieldsSeq(strings.Join(q.Query["scope"], " ")) {
		if parts := strings.Split(scope, ":"); len(parts) == 3 {
			q.Repo = parts[1]
		}
	}
	x := r.begin(req, q)
	r.answerToken(x)
	x.finish(w, false)
}

func newRecord(req *http.Request, op Op) *Request {
	user, _, _ := req.BasicAuth()
	q := &Request{
		Op: op, Method: req.Method, Host: req.Host, Path: req.URL.EscapedPath(),
		Query: req.URL.Query(), Header: req.Header.Clone(), User: user,
	}
	if req.Method == http.MethodPost && req.ParseForm() == nil {
		q.Query = req.Form
	}
	return q
}

// parse finds out what a request to /v2/ is for.
func parse(req *http.Request) *Request {
	q := newRecord(req, Other)
	head := req.Method == http.MethodHead
	if !head && req.Method != http.MethodGet {
		return q
	}
	path, ok := strings.CutPrefix(req.URL.Path, "/v2/")
	if !ok {
		return q
	}
	if path == "" {
		q.Op = Ping
		return q
	}
	if repo, ok := strings.CutSuffix(path, "/tags/list"); ok {
		q.Op, q.Repo = Tags, repo
		return q
	}
	for _, kind := range []struct {
		infix     string
		head, get Op
	}{{"/manifests/", HeadManifest, GetManifest}, {"/blobs/", HeadBlob, GetBlob}, {"/referrers/", Referrers, Referrers}} {
		i := strings.LastIndex(path, kind.infix)
		if i < 0 {
			continue
		}
		q.Repo, q.Reference, q.Op = path[:i], path[i+len(kind.infix):], kind.get
		if head {
			q.Op = kind.head
		}
		break
	}
	return q
}

// answer is what a healthy registry says.
func (r *Registry) answer(x *exchange) {
	q := x.record
	switch q.Op {
	case Ping:
		x.ok("application/json", []byte("{}"))
	case HeadManifest, GetManifest, HeadBlob, GetBlob:
		blob := q.Op == HeadBlob || q.Op == GetBlob
		c, ok := r.find(q.Repo, q.Reference, blob)
		switch {
		case !ok && blob:
			x.fail(http.StatusNotFound, "BLOB_UNKNOWN", "blob unknown to registry")
		case !ok:
			x.fail(http.StatusNotFound, "MANIFEST_UNKNOWN", "manifest unknown")
		case blob && q.Op == GetBlob && r.options.CDN:
			r.toCDN(x)
		default:
			x.serve(c, blob)
		}
	case Tags:
		r.answerTags(x)
	case Referrers:
		r.answerReferrers(x)
	default:
		x.fail(http.StatusNotFound, "UNSUPPORTED", "no such thing here")
	}
}

func (r *Registry) answerTags(x *exchange) {
	tags, ok := r.tags(x.record.Repo)
	if !ok {
		x.fail(http.StatusNotFound, "NAME_UNKNOWN", "repository name not known to registry")
		return
	}
	last := x.record.Query.Get("last")
	for len(tags) > 0 && last != "" && tags[0] <= last {
		tags = tags[1:]
	}
	if n := r.pageSize(x); n > 0 && len(tags) > n {
		tags = tags[:n]
		x.next(url.Values{"n": {strconv.Itoa(n)}, "last": {tags[n-1]}})
	}
	x.ok("application/json", encode(map[string]any{"name": x.record.Repo, "tags": tags}))
}

func (r *Registry) answerReferrers(x *exchange) {
	if r.options.NoReferrers {
		x.fail(http.StatusNotFound, "UNSUPPORTED", "404 page not found")
		return
	}
	list := r.referrers(x.record.Repo, digest.Digest(x.record.Reference))
	from, err := strconv.Atoi(x.record.Query.Get("page"))
	if err != nil {
		from = 0
	}
	list = list[min(max(from, 0), len(list)):]
	if n := r.pageSize(x); n > 0 && len(list) > n {
		list = list[:n]
		x.next(url.Values{"page": {strconv.Itoa(from + n)}})
	}
	x.ok(ocispec.MediaTypeImageIndex, encode(ocispec.Index{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: list,
	}))
}

func (r *Registry) pageSize(x *exchange) int {
	n, err := strconv.Atoi(x.record.Query.Get("n"))
	if err != nil || r.options.PageSize > 0 && n > r.options.PageSize {
		n = r.options.PageSize
	}
	return n
}

func (x *exchange) next(query url.Values) {
	x.header.Set("Link", fmt.Sprintf(`<%s?%s>; rel="next"`, x.request.URL.EscapedPath(), query.Encode()))
}

// subjectOf returns the subject of a manifest, and its artifact type.
func subjectOf(manifest []byte) (digest.Digest, string) {
	var m ocispec.Manifest
	if json.Unmarshal(manifest, &m) != nil || m.Subject == nil {
		return "", ""
	}
	if m.ArtifactType == "" {
		return m.Subject.Digest, m.Config.MediaType
	}
	return m.Subject.Digest, m.ArtifactType
}

// ExpireCDN makes all signed URLs given out so far answer 403.
func (r *Registry) ExpireCDN() {
	r.mu.Lock()
	defer r.mu.Unlock()
	clear(r.signed)
}

// toCDN redirects to a URL that is valid until ExpireCDN.
func (r *Registry) toCDN(x *exchange) {
	c, ok := r.find(x.record.Repo, x.record.Reference, x.record.Op == GetBlob || x.record.Op == HeadBlob)
	if !ok {
		return
	}
	r.mu.Lock()
	r.signing++
	path := fmt.Sprintf("/signed/%s/%d", c.Digest.Encoded(), r.signing)
	r.signed[path] = c
	r.mu.Unlock()
	Redirect(r.CDNURL + path + "?signature=canary-signature")(x)
}

func (r *Registry) serveCDN(w http.ResponseWriter, req *http.Request) {
	q := newRecord(req, CDN)
	r.mu.Lock()
	signed, ok := r.signed[req.URL.Path]
	r.mu.Unlock()
	q.Reference = signed.Digest.String()
	x := r.begin(req, q)
	if ok {
		x.serve(signed, true)
		x.header.Del("Docker-Content-Digest")
	} else {
		x.fail(http.StatusForbidden, "", "the signature has expired")
	}
	x.finish(w, false)
}
