package proxy

import (
	"net/http"
	"net/url"
	"strings"

	"github.com/cachalot-registry/cachalot/upstream"
)

// request is a client's request for content, parsed once. No other code reads the URL.
type request struct {
	contentPath

	host      string     // the Host field, as it was sent
	namespace string     // ?ns=; "": none
	escaped   string     // the path, as it was sent
	query     url.Values // of lists, without ns; nil for content by tag or digest, whose other parameters are ignored
}

// parseRequest reads a request; false: it is not for content.
func parseRequest(r *http.Request) (request, bool) {
	escaped := r.URL.EscapedPath()
	path, ok := parsePath(escaped)
	if !ok {
		return request{}, false
	}
	req := request{contentPath: path, host: r.Host, escaped: escaped}
	if list := path.isList(); list || r.URL.RawQuery != "" {
		query := r.URL.Query()
		req.namespace = query.Get("ns")
		if list {
			query.Del("ns")
			req.query = query
		}
	}
	return req, true
}

// contentPath is a path of content (distribution-spec, "Endpoints"), in which the
// registry may stand before /v2:
//
//	[/{registry}]/v2/{name}/{manifests|blobs|referrers}/{reference}
//	[/{registry}]/v2/{name}/tags/list
type contentPath struct {
	registry, name string
	kind           upstream.Kind
	reference      string
}

// isList reports whether a list is asked for, of tags or of referrers.
func (c contentPath) isList() bool {
	return c.kind == upstream.KindTags || c.kind == upstream.KindReferrers
}

// parsePath parses a path as it was sent: decoded, a %2f would become part of a name. It
// parses from the end, because names have slashes.
func parsePath(path string) (c contentPath, ok bool) {
	rest, reference, _ := cutLast(path)
	rest, list, _ := cutLast(rest)
	switch {
	case reference == "":
		return contentPath{}, false
	case list == "manifests":
		c.kind = upstream.KindManifest
	case list == "blobs":
		c.kind = upstream.KindBlob
	case list == "referrers":
		c.kind = upstream.KindReferrers
	case list == "tags" && reference == "list":
		c.kind = upstream.KindTags
	default:
		return contentPath{}, false
	}
	c.reference = reference
	if c.name, ok = strings.CutPrefix(rest, "/v2/"); !ok {
		c.registry, c.name, ok = strings.Cut(strings.TrimPrefix(rest, "/"), "/v2/")
		ok = ok && rest[0] == '/' && c.registry != "" && !strings.Contains(c.registry, "/")
	}
	return c, ok && c.name != ""
}

// cutLast slices s around its last slash.
func cutLast(s string) (before, after string, found bool) {
	i := strings.LastIndexByte(s, '/')
	if i < 0 {
		return s, "", false
	}
	return s[:i], s[i+1:], true
}

// isName reports whether s is a repository's name (distribution-spec, "Pulling
// manifests"): words of small letters and digits, with one of . _ __ or any number
// of - between two, and slashes.
func isName(s string) bool {
	for part := range strings.SplitSeq(s, "/") {
		for word := true; word; {
			n := 0
			for n < len(part) && isLowerOrDigit(part[n]) {
				n++
			}
			if n == 0 {
				return false // before, after or between separators
			}
			part = part[n:]
			separator := len(part) - len(strings.TrimLeft(part, "-"))
			switch {
			case strings.HasPrefix(part, "__"):
				separator = 2
			case strings.HasPrefix(part, "_"), strings.HasPrefix(part, "."):
				separator = 1
			}
			part, word = part[separator:], separator > 0
			if !word && part != "" {
				return false
			}
		}
	}
	return true
}

// isTag reports whether s is a tag (distribution-spec, "Pulling manifests").
func isTag(s string) bool {
	if s == "" || len(s) > 128 || s[0] == '.' || s[0] == '-' {
		return false
	}
	for _, c := range []byte(s) {
		if !isLowerOrDigit(c) && (c < 'A' || c > 'Z') && c != '_' && c != '.' && c != '-' {
			return false
		}
	}
	return true
}

func isLowerOrDigit(c byte) bool { return c >= 'a' && c <= 'z' || c >= '0' && c <= '9' }
