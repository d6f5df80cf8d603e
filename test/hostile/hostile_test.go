package hostile

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net/http"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/cachalot-registry/cachalot/proxy"
	"github.com/cachalot-registry/cachalot/storage"
	"github.com/cachalot-registry/cachalot/task"
	"github.com/cachalot-registry/cachalot/upstream"
	ut "github.com/cachalot-registry/cachalot/upstream/upstreamtest"
)

// TestMain ends the process if a boundary catches a panic, so that the fuzzer stores the input.
func TestMain(m *testing.M) {
	task.OnPanic(func(p *task.PanicError) {
		_, _ = fmt.Fprintf(os.Stderr, "panic in %s: %v\n%s", p.Work, p.Value, p.Stack)
		os.Exit(2)
	})
	m.Run()
}

// FuzzRegistry takes the registry's responses from the fuzzer.
func FuzzRegistry(f *testing.F) {
	f.Add([]byte{})
	f.Add([]byte("a registry that answers anything"))
	f.Fuzz(func(t *testing.T, data []byte) { meet(t, data) })
}

// TestRegistry tests CACHALOT_TEST_ANSWERS responses, 2000 by default, with seeds from
// CACHALOT_TEST_SEED on.
func TestRegistry(t *testing.T) {
	t.Parallel()
	want, first := int64(ut.Number(t, "CACHALOT_TEST_ANSWERS", 2000)), int64(ut.Number(t, "CACHALOT_TEST_SEED", 1))
	var answers, pulls atomic.Int64
	t.Run("seeds", func(t *testing.T) {
		var next atomic.Int64
		next.Store(first - 1)
		for range runtime.GOMAXPROCS(0) {
			t.Run("", func(t *testing.T) {
				t.Parallel()
				for answers.Load() < want && !t.Failed() {
					seed := next.Add(1)
					met := meet(t, binary.BigEndian.AppendUint64(nil, uint64(seed)))
					answers.Add(met.hostile.answers.Load())
					pulls.Add(met.served.Load())
				}
			})
		}
	})
	t.Logf("%d answers; %d requests of clients got what they asked for", answers.Load(), pulls.Load())
	if pulls.Load() < answers.Load()/10 {
		t.Error("too few are served: this says little")
	}
}

// secret is the password of the hostile registry's account. No client may see it.
const secret = "canary-8f2d"

// meeting has a mirror, a hostile registry and an honest one.
type meeting struct {
	t       *testing.T
	dice    *dice
	hostile *registry
	honest  *ut.Registry
	kept    ut.Image // of the honest registry
	client  *http.Client
	url     string
	served  atomic.Int64
}

// asks is the number of request rounds in one meeting.
const asks = 96

// meet makes clients request content of a hostile and of an honest registry through a mirror.
func meet(t *testing.T, data []byte) *meeting {
	t.Helper()
	m := &meeting{dice: newDice(data)}
	dir := ut.Folder(t)
	defer func() { _ = os.RemoveAll(dir) }() // not t.TempDir: there may be thousands
	synctest.Test(t, func(t *testing.T) {
		m.t = t
		defer func() {
			if t.Failed() {
				t.Logf("by the bytes %x: a seed, or a file of the fuzzer's", data)
			}
		}()
		m.start(t, dir)
		for range asks {
			var together sync.WaitGroup
			for range pick(m.dice, 1, 1, 1, 2, 3) {
				together.Go(m.ask)
			}
			together.Wait()
			if m.dice.once(8) {
				m.pullsHonest()
			}
			time.Sleep(pick(m.dice, 0, 0, 0, 0, 0, time.Second, 11*time.Second, time.Minute))
		}
		m.heals()
	})
	return m
}

func (m *meeting) start(t *testing.T, dir string) {
	t.Helper()
	network := ut.NewMemory()
	quiet := slog.New(slog.DiscardHandler)
	store, err := storage.Open(storage.Config{Path: dir, MaxFills: 64}, storage.NewMetrics(), quiet)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := store.Close(); err != nil {
			t.Error(err)
		}
	})
	if m.hostile, err = newRegistry(network, m.dice); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.hostile.close)
	m.honest = ut.New(t, ut.Options{Memory: network})
	m.kept = m.honest.AddImage(repo, tag, ut.NewImage(8, 1000, 3000))
	var upstreams []proxy.Upstream
	for name, url := range map[string]string{"docker.io": m.honest.URL, "evil.test": m.hostile.URL} {
		cfg := upstream.Config{Name: name, URLs: []string{url}, Dial: network.DialContext, Timeouts: upstream.Timeouts{ResponseHeader: 10 * time.Second, Progress: 10 * time.Second}}
		if name == "evil.test" && m.dice.once(2) {
			cfg.Accounts = []upstream.Account{{Username: "ci", Password: secret}}
		}
		r, err := upstream.New(cfg, upstream.NewMetrics(), quiet)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(r.Close)
		upstreams = append(upstreams, proxy.Upstream{Registry: r})
	}
	p, err := proxy.New(proxy.Config{
		DefaultUpstream: "docker.io", FreshFor: 10 * time.Second, MaxStale: 24 * time.Hour, RevalidateTimeout: time.Second, NegativeFor: 10 * time.Second,
	}, store, upstreams, proxy.NewMetrics(), quiet)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	l, err := network.Listen("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: p, ReadHeaderTimeout: time.Minute, ErrorLog: log.New(panics{t}, "", 0)}
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = s.Serve(l) // ends with ErrServerClosed
	}()
	transport := &http.Transport{DialContext: network.DialContext, DisableCompression: true}
	m.url, m.client = "http://"+l.Addr().String(), &http.Client{Transport: transport}
	t.Cleanup(func() {
		transport.CloseIdleConnections()
		_ = s.Close()
		<-served
	})
}

// panics receives net/http's log, which has the panics that it catches.
type panics struct{ t *testing.T }

func (p panics) Write(b []byte) (int, error) {
	if bytes.Contains(b, []byte("panic")) {
		p.t.Errorf("%s", b)
	}
	return len(b), nil
}

// ask sends one client request to the hostile registry.
func (m *meeting) ask() {
	d := m.dice
	c := pick(d, m.hostile.image.Index, m.hostile.image.Manifest, m.hostile.image.Config, m.hostile.image.Layers[0], m.hostile.image.Layers[1], m.hostile.signature)
	kind := "blobs/"
	if c.Digest == m.hostile.image.Index.Digest || c.Digest == m.hostile.image.Manifest.Digest || c.Digest == m.hostile.signature.Digest || d.once(8) {
		kind = "manifests/"
	}
	path := pick(d, kind+c.Digest.String(), kind+c.Digest.String(), "manifests/"+tag, "tags/list", "tags/list?n="+strconv.Itoa(d.n(4)), "referrers/"+c.Digest.String(),
		"referrers/"+c.Digest.String()+"?artifactType=application/vnd.example.signature", "manifests/other", "blobs/"+digest.FromString("nothing has it").String())
	ctx, leave := context.WithTimeout(m.t.Context(), pick(d, time.Hour, time.Hour, time.Hour, time.Second, 100*time.Millisecond))
	defer leave()
	req, err := http.NewRequestWithContext(ctx, pick(d, http.MethodGet, http.MethodGet, http.MethodHead), m.url+"/v2/evil.test/"+repo+"/"+path, http.NoBody)
	if err != nil {
		m.t.Error(err)
		return
	}
	if d.once(5) {
		req.Header.Set("Range", pick(d, "bytes=0-99", "bytes=10-", "bytes=-5", "bytes=0-0,5-6", "bytes=999999-"))
	}
	if d.once(5) {
		req.Header.Set("Accept", pick(d, m.kept.Index.MediaType, m.kept.Manifest.MediaType, "text/html", "*/*"))
	}
	begun := time.Now()
	resp, err := m.client.Do(req)
	if err != nil {
		if ctx.Err() == nil && !broken(err) {
			m.t.Errorf("%s: %v", path, err)
		}
		return
	}
	if took := time.Since(begun); took > 5*time.Minute {
		m.t.Errorf("%s: the answer took %s", path, took)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if wrong := m.wrong(req, resp, body, err, c, strings.Contains(path, c.Digest.String()) && !strings.HasPrefix(path, "referrers")); wrong != nil {
		m.t.Errorf("%s %s %v: %s %v: %v", req.Method, path, req.Header, resp.Status, resp.Header, wrong)
	}
}

// broken reports whether a response broke off, as it must if the content is wrong.
func broken(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)
}

// wrong checks a response, and returns what is wrong. c is the requested content, if byDigest.
func (m *meeting) wrong(req *http.Request, resp *http.Response, body []byte, cut error, c ut.Content, byDigest bool) error {
	all := fmt.Sprint(resp.Header) + string(body)
	switch {
	case strings.Contains(all, secret):
		return errors.New("the account's password is told")
	case resp.StatusCode >= 400:
		return wrongError(req, resp, body, m.hostile.URL)
	case resp.StatusCode/100 == 3:
		return errors.New("a client is sent elsewhere")
	case cut != nil:
		return nil //nolint:nilerr // the client sees that it is not whole
	case req.Method == http.MethodHead:
		if byDigest && resp.Header.Get("Docker-Content-Digest") != c.Digest.String() {
			return errors.New("another digest")
		}
		return nil
	}
	if kind := resp.Header.Get("Content-Type"); strings.Contains(kind, "html") || strings.Contains(kind, "xml") {
		if !strings.Contains(resp.Header.Get("Content-Security-Policy"), "sandbox") {
			return errors.New("a page")
		}
	}
	switch {
	case resp.StatusCode == http.StatusPartialContent && byDigest:
		var first, last, size int
		if n, _ := fmt.Sscanf(resp.Header.Get("Content-Range"), "bytes %d-%d/%d", &first, &last, &size); n == 3 && (last >= len(c.Bytes) || !bytes.Equal(body, c.Bytes[first:last+1])) {
			return fmt.Errorf("%d bytes that are not those of the digest", len(body))
		}
	case resp.StatusCode == http.StatusPartialContent:
	case byDigest && !bytes.Equal(body, c.Bytes):
		return fmt.Errorf("%d bytes that are not those of the digest", len(body))
	case strings.Contains(req.URL.Path, "/manifests/") && resp.Header.Get("Docker-Content-Digest") != string(digest.FromBytes(body)) && !strings.HasPrefix(resp.Header.Get("Docker-Content-Digest"), "sha512:"):
		return errors.New("a manifest that is not what its digest says")
	case !byDigest && !strings.Contains(req.URL.Path, "/manifests/") && !json.Valid(body):
		return fmt.Errorf("no JSON: %.100q", body)
	default:
		m.served.Add(1)
	}
	return nil
}

// wrongError checks an error response, and returns what is wrong.
func wrongError(req *http.Request, resp *http.Response, body []byte, url string) error {
	var e struct {
		Errors []struct{ Code, Message string }
	}
	switch {
	case resp.StatusCode > http.StatusGatewayTimeout:
		return errors.New("no status for a client")
	case resp.Header.Get("WWW-Authenticate") != "":
		return errors.New("the client is asked for an account")
	case req.Method == http.MethodHead:
	case json.Unmarshal(body, &e) != nil || len(e.Errors) == 0 || e.Errors[0].Code == "" || e.Errors[0].Message == "":
		return fmt.Errorf("no OCI error: %.300q", body)
	case strings.Contains(string(body), strings.TrimPrefix(url, "http://")):
		return fmt.Errorf("an address is told: %s", body)
	}
	return nil
}

// pullsHonest pulls from the honest registry, which must work as usual.
func (m *meeting) pullsHonest() {
	begun := time.Now()
	for path, c := range map[string]ut.Content{"manifests/" + tag: m.kept.Index, "manifests/" + m.kept.Manifest.Digest.String(): m.kept.Manifest, "blobs/" + m.kept.Layers[0].Digest.String(): m.kept.Layers[0]} {
		if err := m.gets("/v2/"+repo+"/"+path, c); err != nil {
			m.t.Errorf("of the honest registry: %v", err)
		}
	}
	if took := time.Since(begun); took > time.Second {
		m.t.Errorf("the honest registry's client waits %s", took)
	}
	for _, r := range m.honest.Requests() {
		if r.Header.Get("Authorization") != "" {
			m.t.Error("another registry's account came to the honest one")
		}
	}
}

// heals checks that the registry, once honest, is served like any other. Its earlier
// responses have no effect, except a Retry-After, for an hour at most.
//
// One failure is allowed: the next download resumes the stored part of a broken one, and
// fails if that part is wrong.
func (m *meeting) heals() {
	r := m.hostile
	r.honest.Store(true)
	contents := map[string]ut.Content{"manifests/" + tag: r.image.Index, "manifests/" + r.image.Manifest.Digest.String(): r.image.Manifest}
	for _, c := range r.image.Blobs() {
		contents["blobs/"+c.Digest.String()] = c
	}
	time.Sleep(10 * time.Minute)
	for path, c := range contents {
		err := m.gets("/v2/evil.test/"+repo+"/"+path, c)
		if err != nil {
			time.Sleep(time.Hour)
			err = m.gets("/v2/evil.test/"+repo+"/"+path, c)
		}
		if err != nil {
			m.t.Errorf("honest at last: %v", err)
		}
	}
}

func (m *meeting) gets(path string, c ut.Content) error {
	resp, err := m.client.Get(m.url + path) //nolint:noctx // in memory
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return fmt.Errorf("%s: %s, after %d bytes: %w", path, resp.Status, len(body), err)
	}
	if resp.StatusCode != http.StatusOK || !bytes.Equal(body, c.Bytes) {
		return fmt.Errorf("%s: %s %v: %.300q", path, resp.Status, resp.Header, body)
	}
	return nil
}
