package proxy

import (
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"github.com/distribution/distribution/v3/registry/api/errcode"
	"github.com/opencontainers/go-digest"

	"github.com/cachalot-registry/cachalot/bounds"
	"github.com/cachalot-registry/cachalot/storage"
	"github.com/cachalot-registry/cachalot/upstream"
)

// target is the object of a request.
type target struct {
	kind     upstream.Kind
	registry *upstream.Registry
	name     string // as the client wrote it, without the registry
	repo     string // as the upstream has it

	tag    string        // manifests by tag
	digest digest.Digest // manifests by digest, blobs and referrers

	policy policy
	client string // the client's address, for fair shares
}

// maxName bounds a repository's name. The specification has no bound, but registries refuse
// longer names.
const maxName = 255

// dockerHub's official images live below library/, which clients leave out.
const dockerHub = "docker.io"

// target finds the registry, repository and reference of a client's request. It never
// asks an upstream.
func (p *Proxy) target(req request, client string) (target, error) {
	kind := req.kind
	t := target{kind: kind, client: client}
	var err error
	if t.registry, t.repo, err = p.route(req, client); err != nil {
		return target{}, err
	}
	if len(t.repo) > maxName || !isName(t.repo) {
		return target{}, refuse(errcode.ErrorCodeNameInvalid, http.StatusBadRequest, "repository names are lower-case letters, digits and . _ - between slashes, %d characters at most", maxName)
	}
	t.name = t.repo
	if t.registry.Name() == dockerHub && !strings.Contains(t.repo, "/") {
		t.repo = "library/" + t.repo
	}

	reference, err := url.PathUnescape(req.reference)
	switch {
	case kind == upstream.KindTags:
		return t, nil
	case err == nil && kind == upstream.KindManifest && isTag(reference):
		t.tag = reference
		return t, nil
	case err == nil && kind == upstream.KindManifest && !strings.Contains(reference, ":"):
		// 404, because no registry can have it: OCI's conformance suite v1.1.1 expects that for a missing manifest.
		return target{}, refuse(errcode.ErrorCodeManifestUnknown, http.StatusNotFound, "tags are letters, digits and . _ -, 128 characters at most")
	}
	if err == nil {
		t.digest, err = storage.ParseDigest(reference)
	}
	if err != nil {
		return target{}, refuse(errcode.ErrorCodeDigestInvalid, http.StatusBadRequest, "%v; digests are sha256: or sha512: and lower-case hexadecimal", err)
	}
	return t, nil
}

// scope returns where the target's content is linked, and how long it is stored.
func (t target) scope() storage.Scope {
	return storage.Scope{
		Upstream: t.registry.Name(), Repository: t.repo, Manifest: t.kind == upstream.KindManifest,
		Keep: storage.Retention{NoStore: t.policy.noStore, For: t.policy.keepFor}, Client: t.client,
	}
}

// holder returns whose share of the limits the target uses.
func (t target) holder() bounds.Holder {
	return bounds.Holder{Group: t.registry.Name(), Repository: t.repo, Client: t.client}
}

// asks returns a question of the target's client to its registry.
func (t target) asks(op string, about cacheKey) question {
	return question{op: op, about: about, holder: t.holder()}
}

// refusal is an error that the mirror answers without an upstream.
type refusal struct {
	code   errcode.ErrorCode
	status int
	detail string
	result result
}

// refuse returns the error of a bad request.
func refuse(code errcode.ErrorCode, status int, format string, args ...any) error {
	return &refusal{code: code, status: status, detail: fmt.Sprintf(format, args...), result: resultError}
}

func (e *refusal) Error() string { return e.detail }

// Public is what a client is told.
func (e *refusal) Public() string { return e.detail }
