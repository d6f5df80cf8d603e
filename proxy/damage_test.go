package proxy

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/cachalot-registry/cachalot/upstream/upstreamtest"
)

// TestBlob_CutWhileServed: if a stored file is cut while it is served, the response breaks
// off, and the next client gets the blob from upstream. Ranges behave the same. A client
// that leaves has no effect.
func TestBlob_CutWhileServed(t *testing.T) {
	t.Parallel()
	const size = 24 << 20 // more than sockets hold
	for name, tc := range map[string]struct {
		header []string
		leave  bool
	}{
		"whole": {}, "range": {header: []string{"Range", "bytes=1000-"}},
		"ranges": {header: []string{"Range", "bytes=0-8000000,10000000-22000000"}}, "client leaves": {leave: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			up := upstreamtest.New(t, upstreamtest.Options{})
			blob := upstreamtest.NewContent("", upstreamtest.Random(1, size))
			up.AddBlob("library/app", blob)
			m := newMirror(t, nil, registry(t, "docker.io", up.URL))
			path := "/v2/library/app/blobs/" + blob.Digest.String()
			m.want(m.get(path), blob)
			m.restart(nil, registry(t, "docker.io", up.URL)) // ends the download's last work
			up.Forget()
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			resp, err := m.begin(ctx, http.MethodGet, path, tc.header...)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			if _, err := io.CopyN(io.Discard, resp.Body, 1000); err != nil {
				t.Fatal(err)
			}
			if tc.leave {
				cancel()
				m.want(m.get(path), blob)
				m.stop() // waits for the rest of the abandoned response
				up.WantCounts(t, map[upstreamtest.Op]int{})
			} else {
				file := filepath.Join(m.dir, "blobs", "sha256", blob.Digest.Encoded()[:2], blob.Digest.Encoded())
				if err := os.Truncate(file, 16<<20); err != nil {
					t.Fatal(err)
				}
				if n, err := io.Copy(io.Discard, resp.Body); err == nil {
					t.Errorf("the answer seems whole after %d bytes", n)
				}
				m.want(m.get(path), blob)
				up.WantCounts(t, map[upstreamtest.Op]int{upstreamtest.GetBlob: 1})
			}
			put, err := os.ReadDir(filepath.Join(m.dir, "quarantine"))
			if err != nil || (len(put) == 1) == tc.leave {
				t.Errorf("in quarantine: %v, %v", put, err)
			}
		})
	}
}

// TestCutByFile: an error of sendfile may come from the file or from the connection.
func TestCutByFile(t *testing.T) {
	t.Parallel()
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	sendfile := func(errno syscall.Errno) error {
		return &net.OpError{Op: "readfrom", Net: "tcp", Err: os.NewSyscallError("sendfile", errno)}
	}
	for _, tc := range []struct {
		err  error
		ctx  context.Context
		file bool
	}{
		{nil, t.Context(), false},
		{sendfile(syscall.EIO), t.Context(), true},
		{sendfile(syscall.EUCLEAN), t.Context(), true},
		{sendfile(syscall.EIO), gone, false},
		{sendfile(syscall.EPIPE), t.Context(), false},
		{sendfile(syscall.ECONNRESET), t.Context(), false},
		{sendfile(syscall.ETIMEDOUT), t.Context(), false},
		{&net.OpError{Op: "write", Err: os.ErrDeadlineExceeded}, t.Context(), false},
		{fmt.Errorf("write: %w", net.ErrClosed), t.Context(), false},
		{&os.PathError{Op: "read", Path: "x", Err: syscall.EIO}, t.Context(), true},
		{io.ErrUnexpectedEOF, t.Context(), true},
	} {
		w := &response{cut: tc.err, ctx: tc.ctx}
		if got := w.cutByFile(); (got != nil) != tc.file {
			t.Errorf("%v: %v", tc.err, got)
		}
	}
}
