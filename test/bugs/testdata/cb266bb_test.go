package proxy

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/cachalot-registry/cachalot/upstream"
	ut "github.com/cachalot-registry/cachalot/upstream/upstreamtest"
)

// one is a registry with one image, and a mirror in front of it.
func one(t *testing.T, o ut.Options, change func(*Config)) (up *ut.Registry, img ut.Image, m *mirror) {
	t.Helper()
	up = ut.New(t, o)
	img = up.AddImage("library/app", "1", ut.NewImage(1, 100))
	return up, img, newMirror(t, change, registry(t, "docker.io", up.URL))
}

// front is a server before a registry, that answers some requests itself.
func front(t *testing.T, up *ut.Registry, answers func(http.ResponseWriter, *http.Request) bool) *httptest.Server {
	t.Helper()
	u, err := url.Parse(up.URL)
	if err != nil {
		t.Fatal(err)
	}
	pass := httputil.NewSingleHostReverseProxy(u)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !answers(w, r) {
			pass.ServeHTTP(w, r)
		}
	}))
	t.Cleanup(s.Close)
	return s
}

func layerPath(c ut.Content) string { return "/v2/library/app/blobs/" + c.Digest.String() }

// within gets a path, or fails after a while.
func (m *mirror) within(d time.Duration, path string) reply {
	m.t.Helper()
	ctx, cancel := context.WithTimeout(m.t.Context(), d)
	defer cancel()
	resp, err := m.begin(ctx, http.MethodGet, path)
	if err != nil {
		return reply{err: err}
	}
	defer resp.Body.Close()
	a := reply{status: resp.StatusCode, header: resp.Header}
	a.body, a.err = io.ReadAll(resp.Body)
	return a
}

// TestField: what registries did to cachalot, by public reports.
func TestField(t *testing.T) {
	for name, test := range map[string]func(*testing.T){
		"head_of_blobs_refused": func(t *testing.T) {
			up, img, m := one(t, ut.Options{}, nil)
			up.AddBlob("library/other", img.Layers[0])
			up.Fault(ut.Match{Op: ut.HeadBlob}, ut.Status(401))
			m.want(m.get(layerPath(img.Layers[0])), img.Layers[0])
			m.want(m.get("/v2/library/other/blobs/"+img.Layers[0].Digest.String()), img.Layers[0])
		},
		"ranges_refused": func(t *testing.T) {
			up := ut.New(t, ut.Options{})
			img := up.AddImage("library/app", "1", ut.NewImage(1, 40<<20))
			s := front(t, up, func(w http.ResponseWriter, r *http.Request) bool {
				if r.Header.Get("Range") != "" {
					w.WriteHeader(http.StatusNotFound)
				}
				return r.Header.Get("Range") != ""
			})
			m := newMirror(t, nil, registry(t, "docker.io", s.URL))
			m.pull("library/app", "1", img)
		},
		"head_of_manifests_refused": func(t *testing.T) {
			up, img, m := one(t, ut.Options{}, nil)
			up.Fault(ut.Match{Op: ut.HeadManifest}, ut.Status(400))
			m.want(m.get(tagPath("1")), img.Index)
		},
		"head_without_length": func(t *testing.T) {
			up, img, m := one(t, ut.Options{}, nil)
			up.Fault(ut.Match{Op: ut.HeadManifest}, func(f ut.Fault, d digest.Digest) []ut.Fault {
				return []ut.Fault{f, ut.LyingDigest(d)}
			}(ut.Body(img.Index.MediaType, nil), img.Index.Digest)...)
			if a := m.head(tagPath("1")); a.header.Get("Content-Length") != strconv.FormatInt(img.Index.Size, 10) {
				t.Errorf("%d %v", a.status, a.header)
			}
		},
		"leads_to_a_registry_with_tokens": func(t *testing.T) {
			up := ut.New(t, ut.Options{Auth: ut.Bearer})
			img := up.AddImage("library/app", "1", ut.NewImage(1, 100))
			s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path != "/v2/" {
					http.Redirect(w, r, up.URL+r.URL.Path, http.StatusTemporaryRedirect)
				}
			}))
			t.Cleanup(s.Close)
			m := newMirror(t, nil, registry(t, "docker.io", s.URL))
			m.want(m.get(tagPath("1")), img.Index)
		},
		"tags_by_ten": func(t *testing.T) {
			up, img, m := one(t, ut.Options{}, nil)
			for n := range 500 {
				up.Tag("library/app", fmt.Sprintf("v%03d", n), img.Index.Digest)
			}
			up.Fault(ut.Match{Op: ut.Tags, After: 2}, ut.Status(503))
			if a := m.get("/v2/library/app/tags/list?n=10"); a.status != http.StatusOK || strings.Count(string(a.body), ",") > 20 || a.header.Get("Link") == "" || up.Count(ut.Tags) != 1 ||
				up.Select(ut.Match{Op: ut.Tags})[0].Query.Get("n") != "10" {
				t.Errorf("%d %v, %d requests", a.status, a.header, up.Count(ut.Tags))
			}
		},
		"login_page": func(t *testing.T) {
			up, img, m := one(t, ut.Options{}, due)
			m.want(m.get(tagPath("1")), img.Index)
			up.Fault(ut.Match{Op: ut.HeadManifest}, ut.Status(405))
			up.Fault(ut.Match{Op: ut.GetManifest}, ut.Body("text/html", []byte("<html>log in</html>")), ut.NoDigest())
			m.want(m.get(tagPath("1")), img.Index)
		},
		"half_a_manifest": func(t *testing.T) {
			up, img, m := one(t, ut.Options{}, nil)
			up.Fault(ut.Match{Op: ut.HeadManifest}, ut.Status(405))
			up.Fault(ut.Match{Op: ut.GetManifest}, ut.Body(img.Index.MediaType, img.Index.Bytes[:img.Index.Size/2]), ut.LyingDigest(img.Index.Digest))
			if a := m.get(tagPath("1")); a.status == http.StatusOK {
				t.Errorf("served: %s", a.body)
			}
		},
		"wrong_byte_of_a_mirror": func(t *testing.T) {
			up, img, _ := one(t, ut.Options{}, nil)
			bad := ut.New(t, ut.Options{})
			bad.AddImage("library/app", "1", img)
			bad.Fault(ut.Match{Op: ut.GetBlob}, ut.WrongBytes())
			m := newMirror(t, nil, registry(t, "docker.io", "", func(c *upstream.Config) { c.URLs = []string{bad.URL, up.URL} }))
			m.get(layerPath(img.Layers[0]))
			m.want(m.get(layerPath(img.Layers[0])), img.Layers[0])
		},
		"labels": func(t *testing.T) {
			up, img, m := one(t, ut.Options{}, nil)
			up.Fault(ut.Match{Op: ut.GetBlob}, ut.Header("Content-Encoding", "aws-chunked"))
			m.want(m.get(layerPath(img.Layers[0])), img.Layers[0])
		},
		"signed": func(t *testing.T) {
			const payload = "{\n   \"schemaVersion\": 1,\n   \"name\": \"library/app\",\n   \"tag\": \"old\",\n   \"fsLayers\": []\n}"
			const mediaType = "application/vnd.docker.distribution.manifest.v1+prettyjws"
			length := len(payload) - len("\n}")
			encode := base64.RawURLEncoding.EncodeToString
			protected := encode(fmt.Appendf(nil, `{"formatLength":%d,"formatTail":%q}`, length, encode([]byte(payload[length:]))))
			content := fmt.Appendf(nil, "%s,\n   \"signatures\": [{\"signature\":\"eA\",\"protected\":%q}]\n}", payload[:length], protected)
			up, _, m := one(t, ut.Options{}, nil)
			for _, op := range []ut.Op{ut.HeadManifest, ut.GetManifest} {
				up.Fault(ut.Match{Op: op}, ut.Body(mediaType, content), ut.LyingDigest(digest.FromString(payload)))
			}
			if a := m.get(tagPath("1")); a.status != http.StatusOK || !bytes.Equal(a.body, content) {
				t.Errorf("%d %s", a.status, a.body)
			}
		},
		"digest_by_sha512": func(t *testing.T) {
			up, img, m := one(t, ut.Options{}, nil)
			up.Fault(ut.Match{Op: ut.HeadManifest}, ut.LyingDigest(digest.SHA512.FromBytes(img.Index.Bytes)))
			if a := m.head("/v2/library/app/manifests/" + img.Index.Digest.String()); a.status != http.StatusOK {
				t.Errorf("%d %v", a.status, a.header)
			}
		},
		"http_1_0": func(t *testing.T) {
			up, _, m := one(t, ut.Options{}, nil)
			layer := ut.NewContent("", ut.Random(10, 100_000))
			up.AddBlob("library/app", layer)
			up.Fault(ut.Match{Op: ut.GetBlob}, ut.NoLength(), ut.WrongBytes())
			c, err := new(net.Dialer).DialContext(t.Context(), "tcp", m.server.Listener.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			_, _ = fmt.Fprintf(c, "GET %s HTTP/1.0\r\n\r\n", layerPath(layer))
			resp, err := http.ReadResponse(bufio.NewReader(c), nil)
			if err != nil {
				return // nothing that looks whole
			}
			body, err := io.ReadAll(resp.Body)
			if err == nil && resp.StatusCode == http.StatusOK {
				t.Errorf("%d bytes that look whole, and are wrong", len(body))
			}
		},
		"moved_to_nothing": func(t *testing.T) {
			up, img, m := one(t, ut.Options{}, due)
			m.want(m.get(tagPath("1")), img.Index)
			up.AddImage("library/app", "1", ut.NewImage(2, 10))
			up.Fault(ut.Match{Op: ut.GetManifest}, ut.Status(404))
			for range 2 {
				m.want(m.get(tagPath("1")), img.Index)
			}

		},
		"login_refused": func(t *testing.T) {
			up := ut.New(t, ut.Options{Auth: ut.Bearer, Username: "ci", Password: "right"})
			img := up.AddImage("library/app", "1", ut.NewImage(1, 100))
			m := newMirror(t, due, registry(t, "docker.io", up.URL, func(c *upstream.Config) { c.Accounts = []upstream.Account{{Username: "ci", Password: "right"}} }))
			m.want(m.get(tagPath("1")), img.Index)
			up.RevokeTokens()
			up.Fault(ut.Match{Op: ut.Token}, ut.Status(401))
			up.Forget()
			for range 40 {
				m.want(m.get(tagPath("1")), img.Index)
			}
			if n := up.Count(ut.Token); n > 6 {
				t.Errorf("%d logins", n)
			}
		},
		"a_firewall_says_404": func(t *testing.T) {
			up, img, m := one(t, ut.Options{}, due)
			m.want(m.get(tagPath("1")), img.Index)
			up.Fault(ut.Match{}, ut.Body("text/html", []byte("<html>no</html>")), ut.StatusOf(404))
			for range 2 {
				m.want(m.get(tagPath("1")), img.Index)
			}
		},
		"401_without_a_challenge": func(t *testing.T) {
			up, img, m := one(t, ut.Options{Auth: ut.Bearer}, due)
			m.want(m.get(tagPath("1")), img.Index)
			up.Fault(ut.Match{Op: ut.HeadManifest}, ut.Status(401))
			up.Fault(ut.Match{Op: ut.GetManifest}, ut.Status(401))
			for range 2 {
				m.want(m.get(tagPath("1")), img.Index)
			}
		},
		"one_object_fails": func(t *testing.T) {
			up, img, m := one(t, ut.Options{}, nil)
			bad := ut.NewContent("", []byte("bad"))
			up.AddBlob("library/app", bad)
			up.Fault(ut.Match{Op: ut.GetBlob, Reference: bad.Digest.String()}, ut.Status(500))
			for range 2 {
				m.get(layerPath(bad))
			}
			m.want(m.get(layerPath(img.Layers[0])), img.Layers[0])
		},
		"stalls_take_all_slots": func(t *testing.T) {
			stalls := ut.New(t, ut.Options{})
			up := ut.New(t, ut.Options{})
			img := up.AddImage("library/app", "1", ut.NewImage(1, 100))
			m := newMirror(t, nil, registry(t, "ghcr.io", stalls.URL), registry(t, "docker.io", up.URL))
			ctx, cancel := context.WithCancel(t.Context())
			stalls.Fault(ut.Match{Op: ut.GetBlob}, ut.StallAfter(100, nil))
			done := make(chan struct{}, 100)
			defer func() {
				cancel()
				for range 100 {
					<-done
				}
			}()
			for n := range uint64(100) {
				c := ut.NewContent("", ut.Random(n, 1000))
				stalls.AddBlob("team/app", c)
				go func() {
					defer func() { done <- struct{}{} }()
					if resp, err := m.begin(ctx, http.MethodGet, "/v2/team/app/blobs/"+c.Digest.String()+"?ns=ghcr.io"); err == nil {
						_, _ = io.Copy(io.Discard, resp.Body)
						_ = resp.Body.Close()
					}
				}()
			}
			waitFor(t, func() bool { return m.inside.Load() == 100 && stalls.Count(ut.GetBlob) >= 16 })
			m.want(m.within(5*time.Second, tagPath("1")), img.Index)
		},
		"one_tag_hangs": func(t *testing.T) {
			up, _, m := one(t, ut.Options{}, func(c *Config) { c.FreshFor, c.RevalidateTimeout = 0, 100*time.Millisecond })
			for _, tag := range []string{"hangs", "hangs-too"} {
				up.AddImage("library/app", tag, ut.NewImage(3, 10))
			}
			for _, tag := range []string{"1", "hangs", "hangs-too"} {
				m.get(tagPath(tag))
			}
			for _, tag := range []string{"hangs", "hangs-too"} {
				up.Fault(ut.Match{Op: ut.HeadManifest, Reference: tag}, ut.BlackHole())
				up.Fault(ut.Match{Op: ut.GetManifest, Reference: tag}, ut.BlackHole())
			}
			moved := up.AddImage("library/app", "1", ut.NewImage(2, 10))
			m.get(tagPath("hangs"))     // it is suspected now
			m.get(tagPath("hangs-too")) // and probed
			for begun := time.Now(); m.get(tagPath("1")).header.Get("Docker-Content-Digest") != moved.Index.Digest.String(); {
				if time.Since(begun) > 5*time.Second {
					t.Fatal("a tag that moved is not seen")
				}
			}
		},
		"the_name_moves": func(t *testing.T) {
			up := ut.New(t, ut.Options{})
			img := up.AddImage("library/app", "1", ut.NewImage(1, 100))
			var gone atomic.Bool
			type old struct{}
			s := front(t, up, func(w http.ResponseWriter, r *http.Request) bool {
				before := !r.Context().Value(old{}).(*atomic.Bool).Load()
				if gone.Load() && before {
					w.WriteHeader(http.StatusServiceUnavailable)
				}
				return gone.Load() && before
			})
			s.Config.ConnContext = func(ctx context.Context, _ net.Conn) context.Context {
				fresh := new(atomic.Bool)
				fresh.Store(gone.Load())
				return context.WithValue(ctx, old{}, fresh)
			}
			m := newMirror(t, nil, registry(t, "docker.io", s.URL))
			m.want(m.get(tagPath("1")), img.Index)
			gone.Store(true)
			for begun := time.Now(); m.get(layerPath(img.Layers[0])).status != http.StatusOK; time.Sleep(100 * time.Millisecond) {
				if time.Since(begun) > 12*time.Second {
					t.Fatal("connections to the old server are kept")
				}
			}
		},
		"retry_after_is_a_date_of_unix": func(t *testing.T) {
			up, _, m := one(t, ut.Options{}, nil)
			up.Fault(ut.Match{Op: ut.GetManifest, Times: 1}, ut.Status(429, "Retry-After", strconv.FormatInt(time.Now().Add(2*time.Second).Unix(), 10)))
			m.get(tagPath("1"))
			for begun := time.Now(); m.get(tagPath("1")).status != http.StatusOK; time.Sleep(100 * time.Millisecond) {
				if time.Since(begun) > 10*time.Second {
					t.Fatal("it rests for years")
				}
			}

		},
		"many_repositories": func(t *testing.T) {
			up := ut.New(t, ut.Options{Auth: ut.Bearer})
			img := ut.NewImage(1, 10)
			m := newMirror(t, due, registry(t, "docker.io", up.URL))
			for range 2 {
				up.Forget()
				for n := range 1300 {
					up.AddImage(fmt.Sprintf("team/app%d", n), "1", img)
					m.head(fmt.Sprintf("/v2/team/app%d/manifests/1", n))
				}
			}
			if n := up.Count(ut.Token); n > 0 {
				t.Errorf("%d tokens in the second round", n)
			}
		},
		"scope_differs": func(t *testing.T) {
			up, img, m := one(t, ut.Options{Auth: ut.Bearer, Scope: "repository:inner/library/app:pull"}, nil)
			m.want(m.get(tagPath("1")), img.Index)
			refused := 0
			for range 3 {
				m.get(layerPath(img.Layers[0]))
				m.get(layerPath(img.Config))
			}
			for _, r := range up.Requests() {
				if r.Op != ut.Ping && r.Status == http.StatusUnauthorized {
					refused++
				}
			}
			if refused > 1 {
				t.Errorf("%d requests were asked twice", refused)
			}
		},
		"many_ranges": func(t *testing.T) {
			up := ut.New(t, ut.Options{})
			layer := ut.NewContent("", ut.Random(1, 1<<20))
			up.AddBlob("library/app", layer)
			m := newMirror(t, nil, registry(t, "docker.io", up.URL))
			m.want(m.get(layerPath(layer)), layer)
			var ranges []string
			for n := range 1000 {
				ranges = append(ranges, fmt.Sprintf("%d-%d", n*1000, n*1000+9))
			}
			if a := m.get(layerPath(layer), "Range", "bytes="+strings.Join(ranges, ",")); a.status != http.StatusPartialContent {
				t.Errorf("%d, %d bytes", a.status, len(a.body))
			}
		},

		// By TestOracle.
		"a_no_is_remembered_as_long_as_it_is_asked_for": func(t *testing.T) {
			up, img, m := one(t, ut.Options{}, func(c *Config) { c.NegativeFor = time.Second })
			fault := up.Fault(ut.Match{Op: ut.GetBlob}, ut.Status(404))
			m.get(layerPath(img.Layers[0]))
			fault.Remove()
			for begun := time.Now(); m.get(layerPath(img.Layers[0])).status != http.StatusOK; time.Sleep(50 * time.Millisecond) {
				if time.Since(begun) > 5*time.Second {
					t.Fatal("it is still a 404")
				}
			}
		},
		"a_break_is_remembered_as_long_as_it_is_asked_for": func(t *testing.T) {
			up, img, m := one(t, ut.Options{}, nil)
			up.Fault(ut.Match{Op: ut.GetBlob, Times: 1}, ut.WrongBytes())
			m.get(layerPath(img.Layers[0]))
			for begun := time.Now(); m.get(layerPath(img.Layers[0])).status != http.StatusOK; time.Sleep(50 * time.Millisecond) {
				if time.Since(begun) > 5*time.Second {
					t.Fatal("it is still refused")
				}
			}
		},
		"a_manifest_is_text": func(t *testing.T) {
			up, img, m := one(t, ut.Options{}, nil)
			up.Fault(ut.Match{Op: ut.GetManifest}, ut.Header("Content-Type", "text/plain"))
			if a := m.get(tagPath("1")); a.header.Get("Content-Type") != img.Index.MediaType {
				t.Errorf("%d %v", a.status, a.header)
			}
		},
		"too_many_requests_a_second": func(t *testing.T) {
			up, _, m := one(t, ut.Options{}, nil)
			up.Fault(ut.Match{Op: ut.GetManifest, Times: 1}, ut.Status(429))
			m.get(tagPath("1"))
			for begun := time.Now(); m.get(tagPath("1")).status != http.StatusOK; time.Sleep(100 * time.Millisecond) {
				if time.Since(begun) > 5*time.Second {
					t.Fatal("it rests for a minute")
				}
			}

		},
		"head_names_another_digest": func(t *testing.T) {
			up, img, m := one(t, ut.Options{}, nil)
			up.Fault(ut.Match{Op: ut.HeadManifest}, ut.LyingDigest(digest.FromString("another")))
			m.want(m.get(tagPath("1")), img.Index)
		},
		"longer_without_a_length": func(t *testing.T) {
			up, img, m := one(t, ut.Options{}, nil)
			up.Fault(ut.Match{Op: ut.GetBlob, Times: 1}, ut.ChangedLength(1), ut.OpenEnd())
			up.Fault(ut.Match{Op: ut.GetBlob, After: 1}, ut.IgnoreRange(), ut.OpenEnd())
			begun := time.Now()
			if a := m.within(5*time.Second, layerPath(img.Layers[0])); time.Since(begun) >= 5*time.Second {
				t.Errorf("no answer: %v", a.err)
			}
		},
		"packed_by_a_front": func(t *testing.T) {
			up, img, m := one(t, ut.Options{}, nil)
			up.Fault(ut.Match{Op: ut.GetBlob}, ut.Gzip())
			m.get(layerPath(img.Layers[0]))
			m.want(m.get(layerPath(img.Layers[0])), img.Layers[0])
		},
		"the_first_of_two_breaks_off": func(t *testing.T) {
			first, second := ut.New(t, ut.Options{}), ut.New(t, ut.Options{})
			img := first.AddImage("library/app", "1", ut.NewImage(1, 100))
			second.AddImage("library/app", "1", img)
			first.Fault(ut.Match{Op: ut.GetBlob}, ut.CutAfter(1))
			m := newMirror(t, nil, registry(t, "docker.io", first.URL, func(c *upstream.Config) { c.URLs = append(c.URLs, second.URL) }))
			m.want(m.within(5*time.Second, layerPath(img.Layers[0])), img.Layers[0])
		},
		"pages_of_a_registry_that_it_leads_to": func(t *testing.T) {
			up := ut.New(t, ut.Options{PageSize: 1})
			img := up.AddImage("library/app", "1", ut.NewImage(1, 100))
			up.Tag("library/app", "2", img.Index.Digest)
			s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				http.Redirect(w, r, up.URL+r.URL.RequestURI(), http.StatusTemporaryRedirect)
			}))
			t.Cleanup(s.Close)
			m := newMirror(t, nil, registry(t, "docker.io", s.URL))
			if a := m.get("/v2/library/app/tags/list?n=1"); a.status != http.StatusOK || a.header.Get("Link") == "" {
				t.Errorf("%d %s %v", a.status, a.body, a.header)
			}
		},
		"one_object_says_when_to_ask_again": func(t *testing.T) {
			up, img, m := one(t, ut.Options{}, nil)
			up.Fault(ut.Match{Op: ut.GetBlob, Reference: img.Layers[0].Digest.String()}, ut.Status(503, "Retry-After", "60"))
			m.within(5*time.Second, layerPath(img.Layers[0]))
			m.want(m.get(layerPath(img.Config)), img.Config)
		},
		"a_page_empties_a_list": func(t *testing.T) {
			up, img, m := one(t, ut.Options{}, due)
			signature := ut.Subject(img.Index.Descriptor, "application/x-test")
			up.AddManifest("library/app", signature)
			path := "/v2/library/app/referrers/" + img.Index.Digest.String()
			m.get(path)
			up.Fault(ut.Match{Op: ut.Referrers}, ut.Body("text/html", []byte("<html>no such page</html>")), ut.StatusOf(404))
			if a := m.get(path); !bytes.Contains(a.body, []byte(signature.Digest)) {
				t.Errorf("%d %s", a.status, a.body)
			}
		},
		"a_page_has_a_digest": func(t *testing.T) {
			up, img, m := one(t, ut.Options{}, due)
			m.pull("library/app", "1", img)
			page := []byte("<html>log in</html>")
			up.Fault(ut.Match{AnyAuth: true}, ut.Body("text/html", page), ut.LyingDigest(digest.FromBytes(page)))
			m.want(m.get(tagPath("1")), img.Index)
		},
	} {
		t.Run(name, test)
	}
}
