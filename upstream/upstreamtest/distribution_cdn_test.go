package upstreamtest

import (
	"bytes"
	"io"
	"net/http"
	"testing"
)

// TestDistributionCDN: distribution redirects to URLs that serve the blob to who
// asks with the signature and without a credential.
func TestDistributionCDN(t *testing.T) {
	t.Parallel()
	d := NewDistribution(t, DistributionOptions{CDN: true})
	img := d.PushImage("a/b", "latest", NewImage(1, 200_000))
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
	asked, sent := d.Select(Match{Op: GetBlob}), d.Select(Match{Op: CDN, Reference: layer.Digest.String()})
	if len(asked) != 1 || asked[0].Status != http.StatusTemporaryRedirect || len(sent) != 1 || sent[0].Status != http.StatusOK {
		t.Fatalf("asked: %+v; sent by the CDN: %+v", asked, sent)
	}

	signed := "http://" + d.cdn.server.addr + sent[0].Path + "?" + sent[0].Query.Encode()
	for name, tt := range map[string]struct {
		url, authorization, span string
		status                   int
	}{
		"again":               {signed, "", "", http.StatusOK},
		"a range":             {signed, "", "bytes=100-", http.StatusPartialContent},
		"with a credential":   {signed, "Bearer canary", "", http.StatusBadRequest},
		"another's signature": {signed + "x", "", "", http.StatusForbidden},
	} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, tt.url, http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		for key, value := range map[string]string{"Authorization": tt.authorization, "Range": tt.span} {
			if value != "" {
				req.Header.Set(key, value)
			}
		}
		resp, err := (&http.Transport{DisableKeepAlives: true}).RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(resp.Body)
		if resp.Body.Close(); err != nil || resp.StatusCode != tt.status {
			t.Errorf("%s: status %d, %v, want %d", name, resp.StatusCode, err, tt.status)
		}
		if tt.span != "" && !bytes.Equal(b, layer.Bytes[100:]) {
			t.Errorf("%s: %d bytes", name, len(b))
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
