package upstream

import (
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// odd is a registry in memory with one manifest, tagged latest, and one long blob. quirk can
// replace its responses.
type odd struct {
	manifest, blob []byte
	quirk          func(w http.ResponseWriter, req *http.Request) bool // true: it has responded

	mu    sync.Mutex // guards asked
	asked []string   // "METHOD kind", "range" beside it
}

func (o *odd) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	content, kind := o.blob, "blob"
	if strings.Contains(req.URL.Path, "/manifests/") {
		content, kind = o.manifest, "manifest"
		w.Header().Set("Content-Type", ocispec.MediaTypeImageManifest)
	}
	line := req.Method + " " + kind
	if req.Header.Get("Range") != "" {
		line += " range"
	}
	o.mu.Lock()
	o.asked = append(o.asked, line)
	o.mu.Unlock()
	if o.quirk != nil && o.quirk(w, req) {
		return
	}
	w.Header().Set("Docker-Content-Digest", digest.FromBytes(content).String())
	var from int
	if _, err := fmt.Sscanf(req.Header.Get("Range"), "bytes=%d-", &from); err == nil {
		w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, len(content)-1, len(content)))
		w.Header().Set("Content-Length", strconv.Itoa(len(content)-from))
		w.WriteHeader(http.StatusPartialContent)
		_, _ = w.Write(content[from:])
		return
	}
	w.Header().Set("Content-Length", strconv.Itoa(len(content)))
	if req.Method != http.MethodHead {
		_, _ = w.Write(content)
	}
}

func newOdd(quirk func(w http.ResponseWriter, req *http.Request) bool) *odd {
	return &odd{manifest: []byte(`{"schemaVersion":2}`), blob: []byte(strings.Repeat("blob ", 2000)), quirk: quirk}
}

// waysToFail returns how registries respond to a request that they do not expect.
func waysToFail() map[string]func(http.ResponseWriter, *http.Request) {
	ways := map[string]func(http.ResponseWriter, *http.Request){
		"silence": func(_ http.ResponseWriter, req *http.Request) { <-req.Context().Done() },
		"broken": func(w http.ResponseWriter, _ *http.Request) {
			if c, _, err := w.(http.Hijacker).Hijack(); err == nil {
				c.Close()
			}
		},
		"nonsense": func(w http.ResponseWriter, _ *http.Request) {
			if c, _, err := w.(http.Hijacker).Hijack(); err == nil {
				_, _ = c.Write([]byte("SSH-2.0-OpenSSH_10.0\r\n"))
				c.Close()
			}
		},
		"a redirect loop": func(w http.ResponseWriter, req *http.Request) {
			http.Redirect(w, req, req.URL.String(), http.StatusFound)
		},
	}
	for _, status := range []int{204, 400, 401, 403, 404, 405, 406, 410, 416, 418, 500, 501, 502, 503} {
		ways[strconv.Itoa(status)] = func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(status) }
	}
	return ways
}

// TestResolve_HeadFails: a tag is found even if HEAD fails, which only a cache sends (L1).
func TestResolve_HeadFails(t *testing.T) {
	t.Parallel()
	ways := waysToFail()
	ways["no digest"] = func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("Content-Length", "19") }
	ways["a page"] = func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html")
		w.Header().Set("Content-Length", "500")
	}
	for name, fail := range ways {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				o := newOdd(func(w http.ResponseWriter, req *http.Request) bool {
					if req.Method == http.MethodHead {
						fail(w, req)
						return true
					}
					return false
				})
				r := served(t, o.ServeHTTP)
				begun := time.Now()
				res, err := r.Resolve(t.Context(), repo, "latest")
				if err != nil || res.Digest != digest.FromBytes(o.manifest) || string(res.Content) != string(o.manifest) {
					t.Errorf("%+v, %v", res, err)
				}
				if took := time.Since(begun); took > optionalPatience {
					t.Errorf("it took %s", took)
				}
				if n := len(o.asked); slices.Contains(o.asked[1:], "HEAD manifest") && name != "a redirect loop" || n > 3 {
					t.Errorf("asked %v", o.asked)
				}
				desc, err := r.Has(t.Context(), KindManifest, repo, digest.FromBytes(o.manifest))
				if err != nil || desc.Digest != digest.FromBytes(o.manifest) {
					t.Errorf("%+v, %v", desc, err)
				}
				desc, err = r.Has(t.Context(), KindBlob, repo, digest.FromBytes(o.blob))
				if err != nil || desc.Size > 0 && desc.Size != int64(len(o.blob)) && name != "a page" && name != "no digest" {
					t.Errorf("%+v, %v", desc, err)
				}
			})
		})
	}
}

// TestOpen_RangeFails: a blob is opened even if requests with a Range fail (L1).
func TestOpen_RangeFails(t *testing.T) {
	t.Parallel()
	for name, fail := range waysToFail() {
		for _, s := range []Span{{Length: 1000}, {Offset: 1000}, {Offset: 1000, Length: 100}} {
			t.Run(fmt.Sprintf("%s %d", name, s.Offset), func(t *testing.T) {
				t.Parallel()
				synctest.Test(t, func(t *testing.T) {
					o := newOdd(func(w http.ResponseWriter, req *http.Request) bool {
						if req.Header.Get("Range") != "" {
							fail(w, req)
							return true
						}
						return false
					})
					r := served(t, o.ServeHTTP)
					c, err := r.Open(t.Context(), KindBlob, repo, digest.FromBytes(o.blob), s)
					if err != nil {
						t.Fatalf("%v, asked %v", err, o.asked)
					}
					defer c.Body.Close()
					if c.Offset != 0 || c.Size != int64(len(o.blob)) {
						t.Errorf("%+v", c)
					}
					if n := len(o.asked); n > maxTries+1 && name != "a redirect loop" {
						t.Errorf("asked %v", o.asked)
					}
				})
			})
		}
	}
}

// TestNotFound_OnlyRegistrysOwn: only an error of the registry itself means that content does
// not exist.
func TestNotFound_OnlyRegistrysOwn(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name   string
		status int
		body   string
		want   bool
	}{
		{"own", 404, `{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}`, true},
		{"gone", 410, `{"errors":[{"code":"NAME_UNKNOWN"}]}`, true},
		{"Harbor's", 404, `{"errors":[{"code":"NOT_FOUND","message":"artifact not found"}]}`, true},
		{"a page", 404, `<html><body>404 Not Found</body></html>`, false},
		{"text", 404, "default backend - 404", false},
		{"nothing", 404, "", false},
		{"other JSON", 404, `{"message":"no Route matched with those values"}`, false},
		{"Artifactory's page", 404, `{"errors":[{"status":404,"message":"Not Found"}]}`, false},
		{"a login", 404, `{"errors":[{"code":"UNAUTHORIZED"}]}`, false},
		{"refused", 403, `{"errors":[{"code":"DENIED"}]}`, false},
		{"refused, that it is unknown", 403, `{"errors":[{"code":"MANIFEST_UNKNOWN"}]}`, false},
		{"failure", 500, `{"errors":[{"code":"MANIFEST_UNKNOWN"}]}`, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				r := served(t, func(w http.ResponseWriter, _ *http.Request) {
					w.WriteHeader(tc.status)
					_, _ = w.Write([]byte(tc.body))
				})
				_, err := r.Resolve(t.Context(), repo, "latest")
				if err == nil || SaysNo(err) != tc.want {
					t.Errorf("%v: says no: %v", err, SaysNo(err))
				}
			})
		})
	}
}

// TestManifest_Strangers: content that is not a manifest is refused, whatever its status (L2).
func TestManifest_Strangers(t *testing.T) {
	t.Parallel()
	whole := []byte(`{"schemaVersion":2,"config":{},"layers":[]}`)
	for name, answer := range map[string]func(w http.ResponseWriter){
		"a page":          func(w http.ResponseWriter) { _, _ = w.Write([]byte("<html>log in</html>")) },
		"empty":           func(http.ResponseWriter) {},
		"errors":          func(w http.ResponseWriter) { _, _ = w.Write([]byte(`{"errors":[{"code":"UNAUTHORIZED"}]}`)) },
		"an array":        func(w http.ResponseWriter) { _, _ = w.Write([]byte(`[]`)) },
		"an empty object": func(w http.ResponseWriter) { _, _ = w.Write([]byte(`{}`)) },
		"half":            func(w http.ResponseWriter) { _, _ = w.Write(whole[:20]) },
		"half, with its digest": func(w http.ResponseWriter) {
			w.Header().Set("Docker-Content-Digest", digest.FromBytes(whole).String())
			_, _ = w.Write(whole[:len(whole)/2])
		},
		"another, with its digest": func(w http.ResponseWriter) {
			w.Header().Set("Docker-Content-Digest", digest.FromBytes(whole).String())
			_, _ = w.Write([]byte(`{"schemaVersion":2}`))
		},
		"damaged": func(w http.ResponseWriter) { _, _ = w.Write([]byte("{\"schemaVersion\":2,\"mediaType\":\"a\x99\"}")) },
		"a digest in it that is none": func(w http.ResponseWriter) {
			_, _ = w.Write([]byte(`{"schemaVersion":2,"layers":[{"digest":"sha256:12x"}]}`))
		},
		"no content": func(w http.ResponseWriter) { w.WriteHeader(http.StatusNoContent) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				r := served(t, func(w http.ResponseWriter, req *http.Request) {
					if req.Method == http.MethodHead {
						w.WriteHeader(http.StatusMethodNotAllowed)
						return
					}
					answer(w)
				})
				res, err := r.Resolve(t.Context(), repo, "latest")
				if !errors.Is(err, ErrInvalid) || SaysNo(err) {
					t.Errorf("%+v, %v", res, err)
				}
			})
		})
	}
}
