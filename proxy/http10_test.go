package proxy

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	ut "github.com/cachalot-registry/cachalot/upstream/upstreamtest"
)

// TestHTTP10: an HTTP/1.0 client, such as nginx by default, takes the end of the connection
// as the end of a body without a length. It gets no wrong or cut body that looks complete
// (I1).
func TestHTTP10(t *testing.T) {
	t.Parallel()
	for name, faults := range map[string][]ut.Fault{
		"right":                  {ut.NoLength()},
		"right, with its length": nil,
		"a byte flipped":         {ut.NoLength(), ut.WrongBytes()},
		"cut":                    {ut.NoLength(), ut.CutAfter(50_000)},
		"ends too early":         {ut.OpenEnd(), ut.CutAfter(50_000)},
		"flipped, with a length": {ut.WrongBytes()},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			up := ut.New(t, ut.Options{})
			layer := ut.NewContent("", ut.Random(10, 100_000))
			up.AddBlob("library/app", layer)
			if len(faults) > 0 {
				up.Fault(ut.Match{Op: ut.GetBlob}, faults...)
			}
			m := newMirror(t, nil, registry(t, "docker.io", up.URL))
			for range 2 {
				c, err := new(net.Dialer).DialContext(t.Context(), "tcp", m.server.Listener.Addr().String())
				if err != nil {
					t.Fatal(err)
				}
				_, _ = fmt.Fprintf(c, "GET /v2/library/app/blobs/%s HTTP/1.0\r\n\r\n", layer.Digest)
				resp, err := http.ReadResponse(bufio.NewReader(c), nil) //nolint:bodyclose // it ends with the connection
				if err != nil {
					_ = c.Close()
					continue // it does not look complete
				}
				body, err := io.ReadAll(resp.Body)
				_ = c.Close()
				whole := err == nil && resp.StatusCode == http.StatusOK
				if whole && !bytes.Equal(body, layer.Bytes) {
					t.Errorf("%d bytes that look whole, and are not", len(body))
				}
				if strings.HasPrefix(name, "right") && (!whole || resp.ContentLength != layer.Size) {
					t.Errorf("%s, a length of %d, %d bytes, %v", resp.Status, resp.ContentLength, len(body), err)
				}
			}
		})
	}
}
