package distributiontest

import (
	"bytes"
	"io"
	"net/http"
	"testing"

	"go.uber.org/goleak"

	"github.com/cachalot-registry/cachalot/upstream/upstreamtest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m, IgnoreBroadcaster()) }

// get sends a GET with headers, given as name and value in turn.
func get(t *testing.T, url string, headers ...string) (status int, body []byte, err error) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	resp, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Do(req)
	if err != nil {
		return 0, nil, err
	}
	defer resp.Body.Close()
	body, err = io.ReadAll(resp.Body)
	return resp.StatusCode, body, err
}

// TestPush: what is pushed to distribution can be pulled, and pushes are not recorded.
func TestPush(t *testing.T) {
	t.Parallel()
	d := New(t, Options{})
	img := d.PushImage("a/b", "latest", upstreamtest.NewImage(1, 1000, 0))
	if d.Count() != 0 {
		t.Errorf("recorded %v", d.Counts())
	}
	status, b, err := get(t, d.URL+"/v2/a/b/manifests/latest")
	if err != nil || status != 200 || !bytes.Equal(b, img.Index.Bytes) || d.Sent(img.Index.Digest) != img.Index.Size {
		t.Errorf("status %d, %q, %v, %d counted", status, b, err, d.Sent(img.Index.Digest))
	}
}
