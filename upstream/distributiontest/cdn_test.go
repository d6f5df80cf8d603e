package distributiontest

import (
	"bytes"
	"net/http"
	"testing"

	"github.com/cachalot-registry/cachalot/upstream/upstreamtest"
)

// TestDistributionCDN: distribution redirects to signed URLs. They serve the blob to requests
// with the signature and without a credential.
func TestDistributionCDN(t *testing.T) {
	t.Parallel()
	d := New(t, Options{CDN: true})
	img := d.PushImage("a/b", "latest", upstreamtest.NewImage(1, 200_000))
	layer := img.Layers[0]
	if status, _, err := get(t, d.URL+"/v2/a/b/manifests/latest"); err != nil || status != http.StatusOK {
		t.Errorf("the manifest: status %d, %v", status, err)
	}
	if status, b, err := get(t, d.URL+"/v2/a/b/blobs/"+layer.Digest.String()); err != nil || status != http.StatusOK || !bytes.Equal(b, layer.Bytes) {
		t.Fatalf("the layer: status %d, %d bytes, %v", status, len(b), err)
	}
	if got := d.Sent(layer.Digest); got != layer.Size {
		t.Errorf("%d bytes counted, want %d", got, layer.Size)
	}
	asked, sent := d.Select(upstreamtest.Match{Op: upstreamtest.GetBlob}), d.Select(upstreamtest.Match{Op: upstreamtest.CDN, Reference: layer.Digest.String()})
	if len(asked) != 1 || asked[0].Status != http.StatusTemporaryRedirect || len(sent) != 1 || sent[0].Status != http.StatusOK {
		t.Fatalf("asked: %+v; sent by the CDN: %+v", asked, sent)
	}

	signed := "http://" + d.cdn.server.Host() + sent[0].Path + "?" + sent[0].Query.Encode()
	for name, tt := range map[string]struct {
		url     string
		headers []string
		status  int
		want    []byte
	}{
		"again":               {signed, nil, http.StatusOK, layer.Bytes},
		"a range":             {signed, []string{"Range", "bytes=100-"}, http.StatusPartialContent, layer.Bytes[100:]},
		"with a credential":   {signed, []string{"Authorization", "Bearer canary"}, http.StatusBadRequest, nil},
		"another's signature": {signed + "x", nil, http.StatusForbidden, nil},
	} {
		status, b, err := get(t, tt.url, tt.headers...)
		if err != nil || status != tt.status || tt.want != nil && !bytes.Equal(b, tt.want) {
			t.Errorf("%s: status %d, want %d, %d bytes, %v", name, status, tt.status, len(b), err)
		}
	}

	d.Down()
	if _, _, err := get(t, signed); err == nil {
		t.Error("down, the CDN answers")
	}
	d.Up()
	if status, _, err := get(t, signed); err != nil || status != http.StatusOK {
		t.Errorf("up again: status %d, %v", status, err)
	}
}
