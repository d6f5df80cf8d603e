package server

import (
	"context"
	"io"
	"net/http"
	"syscall"
	"testing"

	"github.com/cachalot-registry/cachalot/upstream/upstreamtest"
)

// ask sends a request with header names and values, and reads the response.
func (r *running) ask(t *testing.T, url string, header ...string) (status int, body []byte, answer http.Header) {
	t.Helper()
	req, err := http.NewRequestWithContext(context.Background(), http.MethodGet, url, http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Add(header[i], header[i+1])
	}
	resp, err := r.client.Do(req)
	if err != nil { // some tests cut the response
		return 0, nil, nil
	}
	defer resp.Body.Close()
	body, _ = io.ReadAll(resp.Body) // the same
	return resp.StatusCode, body, resp.Header
}

// Log lines that a request causes have its id.
func TestLogSaysWhoseRequest(t *testing.T) {
	t.Parallel()
	up := upstreamtest.New(t, upstreamtest.Options{})
	img := upstreamtest.NewImage(1, 300_000)
	up.AddImage("library/app", "latest", img)
	wrong := up.AddImage("library/other", "latest", upstreamtest.NewImage(2, 1000)).Layers[0]
	up.Fault(upstreamtest.Match{Op: upstreamtest.GetBlob, Reference: wrong.Digest.String()}, upstreamtest.WrongBytes())
	up.Fault(upstreamtest.Match{Op: upstreamtest.GetBlob, Repo: "library/app", Times: 1}, upstreamtest.CutAfter(200_000))
	up.Fault(upstreamtest.Match{Op: upstreamtest.GetBlob, Repo: "library/app", After: 1, Times: 2}, upstreamtest.Status(http.StatusNotFound))
	r := start(t, "log: {level: debug}\n"+upstreams(up.URL))

	r.ask(t, r.url+"/v2/library/app/blobs/"+img.Layers[0].Digest.String(), "X-Request-Id", "a-break")
	r.log.wait(t, `level=INFO msg="download broke; resuming" upstream=docker.io repository=library/app digest=\S+ offset=\d+ error=.* request_id=a-break\n`)
	r.log.wait(t, `level=WARN msg="download failed" upstream=docker.io repository=library/app digest=\S+ bytes=\d+ error=.* request_id=a-break\n`)
	r.log.wait(t, `level=DEBUG msg="asked upstream" upstream=docker.io op=get_blob method=GET host=127.0.0.1:\d+ range="?bytes=\d+-"? seconds=\S+ status=404 request_id=a-break\n`)
	r.ask(t, r.url+"/v2/library/other/blobs/"+wrong.Digest.String(), "X-Request-Id", "a-lie")
	r.log.wait(t, `level=ERROR msg="upstream sent wrong content" upstream=docker.io .* request_id=a-lie\n`)
	r.log.wait(t, `level=INFO msg=request method=GET client=127.0.0.1 user_agent=Go-http-client/1.1 request_id=a-lie status=\d+ .*error=`)
}

// A reload adds and removes trusted proxies.
func TestReloadTrustedProxies(t *testing.T) {
	t.Parallel()
	up := upstreamtest.New(t, upstreamtest.Options{})
	r := start(t, upstreams(up.URL))
	asks := func(id string, header ...string) string {
		t.Helper()
		r.ask(t, r.url+"/v2/", append(header, "X-Request-Id", id)...)
		return r.log.wait(t, `client=(\S+) user_agent=\S+ request_id=`+id+" ")[1]
	}
	if got := asks("before", "X-Forwarded-For", "198.51.100.1"); got != "127.0.0.1" {
		t.Errorf("a stranger is believed: %s", got)
	}
	r.configure(t, "trusted_proxies: [127.0.0.0/8]\n"+upstreams(up.URL))
	r.signals <- syscall.SIGHUP
	r.log.wait(t, `msg="configuration reloaded"`)
	if got := asks("after", "X-Forwarded-For", "192.0.2.66", "X-Forwarded-For", "198.51.100.1"); got != "198.51.100.1" {
		t.Errorf("a proxy is not believed: %s", got)
	}
	r.log.forget()
	r.configure(t, "trusted_proxies: [127.0.0.1]\nforwarded_header: Forwarded\n"+upstreams(up.URL))
	r.signals <- syscall.SIGHUP
	r.log.wait(t, `msg="configuration reloaded"`)
	if got := asks("other", "X-Forwarded-For", "192.0.2.66", "Forwarded", "for=198.51.100.2"); got != "198.51.100.2" {
		t.Errorf("by the other header: %s", got)
	}
}
