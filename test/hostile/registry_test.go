package hostile

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	ut "github.com/cachalot-registry/cachalot/upstream/upstreamtest"
)

// The repository and tag of a registry.
const (
	repo = "library/app"
	tag  = "1"
)

// registry sends responses that the dice decide, until honest is set.
type registry struct {
	URL string

	dice      *dice
	listener  net.Listener
	image     ut.Image
	signature ut.Content
	contents  map[string]ut.Content // by digest
	honest    atomic.Bool
	answers   atomic.Int64

	mu     sync.Mutex // guards the fields below
	conns  map[net.Conn]struct{}
	closed bool
	served sync.WaitGroup
}

func newRegistry(network *ut.Memory, d *dice) (*registry, error) {
	l, err := network.Listen("127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	r := &registry{
		URL: "http://" + l.Addr().String(), dice: d, listener: l, image: ut.NewImage(7, 1000, 20_000),
		contents: map[string]ut.Content{}, conns: map[net.Conn]struct{}{},
	}
	r.signature = ut.Subject(r.image.Index.Descriptor, "application/vnd.example.signature")
	for _, c := range append(r.image.Blobs(), r.image.Index, r.image.Manifest, r.signature) {
		r.contents[c.Digest.String()] = c
	}
	r.served.Go(r.accept)
	return r, nil
}

func (r *registry) accept() {
	for {
		c, err := r.listener.Accept()
		if err != nil {
			return // the listener is closed
		}
		r.mu.Lock()
		if r.closed {
			_ = c.Close()
		} else {
			r.conns[c] = struct{}{}
			r.served.Go(func() { r.serve(c) })
		}
		r.mu.Unlock()
	}
}

// close closes the listener and all connections.
func (r *registry) close() {
	_ = r.listener.Close()
	r.mu.Lock()
	r.closed = true
	for c := range r.conns {
		_ = c.Close()
	}
	r.mu.Unlock()
	r.served.Wait()
}

func (r *registry) serve(c net.Conn) {
	defer func() {
		_ = c.Close()
		r.mu.Lock()
		delete(r.conns, c)
		r.mu.Unlock()
	}()
	in := bufio.NewReader(c)
	for {
		req, err := http.ReadRequest(in)
		if err != nil {
			return
		}
		if _, err := io.Copy(io.Discard, req.Body); err != nil {
			return
		}
		r.answers.Add(1)
		a := r.right(req)
		if !r.honest.Load() {
			for range pick(r.dice, 0, 0, 1, 1, 1, 2, 2, 3, 4) {
				a.change(r.dice, r)
			}
		}
		if !a.send(c, req.Method) {
			return
		}
	}
}

// right is an honest registry's response.
func (r *registry) right(req *http.Request) *answer {
	a := &answer{proto: "HTTP/1.1", status: http.StatusOK, cut: -1, stall: -1}
	path := req.URL.Path
	rest, known := strings.CutPrefix(path, "/v2/"+repo+"/")
	kind, reference, _ := strings.Cut(rest, "/")
	if reference == tag {
		reference = r.image.Index.Digest.String()
	}
	c, here := r.contents[reference]
	switch {
	case path == "/v2/":
		a.body = []byte("{}")
	case path == "/token":
		a.set("Content-Type", "application/json")
		a.body = []byte(`{"token":"t","expires_in":300}`)
	case known && (kind == "manifests" || kind == "blobs") && here:
		a.set("Content-Type", c.MediaType)
		a.set("Docker-Content-Digest", c.Digest.String())
		a.body = c.Bytes
		var from int
		if n, _ := fmt.Sscanf(req.Header.Get("Range"), "bytes=%d-", &from); n == 1 && from < len(a.body) {
			a.status = http.StatusPartialContent
			a.set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, len(a.body)-1, len(a.body)))
			a.body = a.body[from:]
		}
	case known && rest == "tags/list":
		a.set("Content-Type", "application/json")
		a.body = []byte(`{"name":"` + repo + `","tags":["` + tag + `"]}`)
	case known && kind == "referrers":
		a.set("Content-Type", ocispec.MediaTypeImageIndex)
		a.body = r.referrers(reference)
	default:
		a.status = http.StatusNotFound
		a.set("Content-Type", "application/json")
		a.body = []byte(`{"errors":[{"code":"MANIFEST_UNKNOWN","message":"no such thing"}]}`)
	}
	return a
}

func (r *registry) referrers(d string) []byte {
	index := ocispec.Index{MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{}}
	index.SchemaVersion = 2
	if d == r.image.Index.Digest.String() {
		index.Manifests = append(index.Manifests, r.signature.Descriptor)
	}
	b, err := json.Marshal(index)
	if err != nil {
		panic(err) // it always marshals
	}
	return b
}

func headerNames() []string {
	return []string{
		"Content-Type", "Docker-Content-Digest", "WWW-Authenticate", "Link", "Location", "Content-Range", "Content-Encoding", "Retry-After",
		"Content-Length", "Transfer-Encoding", "Connection", "Date", "RateLimit-Remaining", "RateLimit-Limit", "ETag", "Docker-Distribution-Api-Version",
		"OCI-Subject", "OCI-Filters-Applied", "Set-Cookie", "Trailer", "Age", "Cache-Control", "Warning", "Upgrade", "Accept-Ranges", "X-Filler",
	}
}

// value is a header's value, right or wrong.
func (r *registry) value(d *dice, name string) string {
	if d.once(6) {
		return d.text(40)
	}
	if d.once(20) {
		return strings.Repeat("x", 1<<(4*d.n(5))) // up to and beyond the bounds of a header
	}
	named, path := pick(d, r.digests()...), "/v2/"+repo
	switch name {
	case "Content-Type":
		return pick(d, ocispec.MediaTypeImageIndex, ocispec.MediaTypeImageManifest, "text/html", "image/svg+xml", "application/json", "application/octet-stream",
			"application/vnd.docker.distribution.manifest.v1+prettyjws", "a/b; c=\"", "multipart/byteranges; boundary=x", "")
	case "Docker-Content-Digest", "OCI-Subject":
		return pick(d, named, digest.SHA512.FromString("x").String(), "sha256:", "sha256:00", "md5:d41d8cd98f00b204e9800998ecf8427e", strings.ToUpper(named), named+" ", "")
	case "WWW-Authenticate":
		return pick(d, `Bearer realm="`+r.URL+`/token",service="s",scope="repository:`+repo+`:pull"`, `Bearer realm="`+r.URL+`/token"`, `Basic realm="x"`, `Bearer realm="http://169.254.169.254/latest"`,
			`Bearer realm="file:///etc/passwd"`, `Bearer realm="//"`, `Bearer`, `Negotiate`, `Bearer realm="`+r.URL+`/token?a=`+strings.Repeat("b", 3000)+`"`, `Bearer realm="`+r.URL, "")
	case "Link":
		return pick(d, `<`+path+`/tags/list?last=`+d.text(2)+`>; rel="next"`, fmt.Sprintf(`<%s/tags/list?n=1&last=%d>; rel="next"`, path, d.n(256)), `<?x=`+fmt.Sprint(d.n(256))+`>; rel=next`,
			`<http://169.254.169.254/x>; rel="next"`, `<`+path+`/referrers/`+named+`?p=`+fmt.Sprint(d.n(256))+`>; rel="next"`, `<%zz>; rel="next"`, `<`, `<>; rel="next"`, "")
	case "Location":
		return pick(d, r.URL+path+"/blobs/"+named, path+"/blobs/"+named, "/v2/", "", "//", "http://169.254.169.254/", "file:///etc/passwd", r.URL+"/token", "http://[::1", "?x", "#", "javascript:alert(1)", r.URL+req(d))
	case "Content-Range":
		return pick(d, "bytes 0-999/1000", "bytes 0-0/1", "bytes 5-4/10", "bytes */1000", "bytes 0-9223372036854775807/*", "bytes -1-5/6", "bytes 10-19/20000", "items 0-1/2", "bytes 1-999/1000", "")
	case "Content-Encoding", "Transfer-Encoding":
		return pick(d, "gzip", "identity", "chunked", "deflate", "br", "aws-chunked", "x-gzip", "gzip, gzip", "GZIP", "")
	case "Retry-After":
		return pick(d, "0", "1", "-1", "60", "86400", "99999999999999999999", "1.5", time.Now().Add(time.Hour).Format(http.TimeFormat), "Thu, 01 Jan 1970 00:00:00 GMT", "")
	case "Content-Length", "RateLimit-Remaining", "RateLimit-Limit", "Age":
		return pick(d, "0", "1", "100;w=21600", "-1", "99999999999999999999", "1;w=x", "NaN", "", "1000")
	case "Connection", "Upgrade", "Trailer":
		return pick(d, "close", "keep-alive", "Upgrade", "h2c", "websocket", "Content-Length", "Docker-Content-Digest", "")
	case "Date", "ETag":
		return pick(d, "Thu, 01 Jan 1970 00:00:00 GMT", "Fri, 31 Dec 9999 23:59:59 GMT", `"x"`, `W/"x"`, "yesterday", "")
	}
	return pick(d, "a=b; Path=/", "max-age=31536000", "no-store", "registry/2.0", "artifactType", "bytes", "none", "")
}

// req is the path and query of a redirect, of any length.
func req(d *dice) string {
	return "/" + strings.Repeat("a/", d.n(256)) + "?" + strings.Repeat("b", 16*d.n(256))
}

func (r *registry) digests() []string {
	list := []string{r.image.Index.Digest.String(), r.image.Manifest.Digest.String(), r.signature.Digest.String(), digest.FromString("nothing has it").String()}
	for _, b := range r.image.Blobs() {
		list = append(list, b.Digest.String())
	}
	return list
}

// body is the body of another kind of response.
func (r *registry) body(d *dice) []byte {
	named := pick(d, r.digests()...)
	descriptor := `{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"` + named + `","size":` + pick(d, "0", "-1", "5", "1e30", "9223372036854775807", "null", `"5"`) + `}`
	switch d.n(13) {
	case 0, 12:
		return []byte(pick(d, "null", "[]", "{}", "0", `""`, "true", "", "{", `{"manifests":null}`, `{"manifests":[null]}`, `{"tags":null}`, `{"tags":[null]}`, `{"tags":{}}`, `{"errors":null}`, `{"errors":[]}`,
			`{"errors":[{}]}`, `{"token":null}`, `{"token":"a\u0000b"}`, "\x00", "\xff\xfe", "\xef\xbb\xbf{}"))
	case 1:
		return []byte(`{"errors":[{"code":"` + pick(d, "MANIFEST_UNKNOWN", "BLOB_UNKNOWN", "NAME_UNKNOWN", "DENIED", "UNAUTHORIZED", "TOOMANYREQUESTS", "UNSUPPORTED", "X", "") + `","message":"` + pick(d, "no", "at 127.0.0.1", `\u001b[31m`, strings.Repeat("x", 5000)) + `","detail":null}]}`)
	case 2:
		return []byte(`{"schemaVersion":2,"mediaType":"` + ocispec.MediaTypeImageIndex + `","manifests":[` + strings.TrimSuffix(strings.Repeat(descriptor+",", d.n(256)), ",") + `]}`)
	case 3:
		return []byte(`{"schemaVersion":2,"mediaType":"` + ocispec.MediaTypeImageManifest + `","config":` + descriptor + `,"layers":[` + strings.TrimSuffix(strings.Repeat(descriptor+",", d.n(256)), ",") + `]}`)
	case 4:
		return []byte(`{"name":"` + repo + `","tags":["` + strings.Repeat("x", d.n(256)) + `",` + strings.Repeat(`"1",`, d.n(256)) + `"` + d.text(4) + `"]}`)
	case 5:
		return []byte(`{"token":"` + strings.Repeat("t", d.n(256)*200) + `","access_token":` + pick(d, `"a"`, "1", "null") + `,"expires_in":` + pick(d, "0", "-1", "1e300", `"60"`, "60", "null", "99999999999") + `,"issued_at":"` + pick(d, "1970-01-01T00:00:00Z", "9999-12-31T23:59:59Z", "x") + `"}`)
	case 6:
		return []byte("<html>" + strings.Repeat("please log in ", d.n(256)) + "</html>")
	case 7:
		return bytes.Repeat([]byte(pick(d, "[", "{\"a\":", "x", "\x00", "{\"tags\":[")), d.n(256)*40)
	case 8:
		return bytes.Repeat([]byte("0123456789abcdef"), d.n(256)*256) // up to a megabyte
	case 9:
		return r.contents[named].Bytes
	case 10:
		return []byte(`{"schemaVersion":1,"signatures":[{"protected":"` + pick(d, "eyJmb3JtYXRMZW5ndGgiOjUsImZvcm1hdFRhaWwiOiJDbjAifQ", "eyJmb3JtYXRMZW5ndGgiOi01fQ", "!") + `"}],"fsLayers":[{"blobSum":"` + named + `"}]}`)
	}
	return []byte(d.text(255))
}
