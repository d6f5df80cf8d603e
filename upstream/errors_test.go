package upstream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cachalot-registry/cachalot/upstream/upstreamtest"
)

// TestErrorWords: the error has upstream's code and message, in each known format.
func TestErrorWords(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name          string
		faults        []upstreamtest.Fault
		code, message string
	}{
		{"OCI", []upstreamtest.Fault{upstreamtest.StatusError(403, "DENIED", "not\x1b[31m\nyours")}, "DENIED", "not[31m yours"},
		{"Docker Hub's token server", []upstreamtest.Fault{upstreamtest.Body("application/json", []byte(`{"details":"incorrect password"}`)), upstreamtest.StatusOf(403)}, "", "incorrect password"},
		{"Google", []upstreamtest.Fault{upstreamtest.Body("application/json", []byte(`{"message":"no"}`)), upstreamtest.StatusOf(403)}, "", "no"},
		{"a proxy", []upstreamtest.Fault{upstreamtest.Body("text/html", []byte(`<p>no`)), upstreamtest.StatusOf(403)}, "", ""},
		{"no JSON", []upstreamtest.Fault{upstreamtest.Body("application/json", []byte(`{"errors":[`)), upstreamtest.StatusOf(403)}, "", ""},
		{"endless", []upstreamtest.Fault{upstreamtest.Endless(), upstreamtest.StatusOf(403)}, "", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			up, img := image(t, upstreamtest.Options{})
			up.Fault(upstreamtest.Match{Op: upstreamtest.GetBlob}, tt.faults...)
			_, err := asking(t, up).Open(t.Context(), KindBlob, repo, img.Config.Digest, Span{})
			var e *Error
			if !errors.As(err, &e) || !errors.Is(err, ErrDenied) || e.Code != tt.code || e.Message != tt.message || e.Status != 403 || e.Op != "get_blob" || e.Upstream != "docker.io" {
				t.Errorf("got %+v", e)
			}
		})
	}
}

func TestErrTimeoutIsUnavailable(t *testing.T) {
	t.Parallel()
	if !errors.Is(ErrTimeout, ErrUnavailable) || errors.Is(ErrUnavailable, ErrTimeout) {
		t.Error("ErrTimeout must be ErrUnavailable, and not the other way round")
	}
}

// TestCallersDeadline is a timeout, and the context's error too.
func TestCallersDeadline(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r, err := New(Config{Name: "r.test", URLs: []string{"http://r.test"}}, NewMetrics(), slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		r.transport.Proxy = nil
		pipes(r, answering(200))
		head(t, r, repo) // so that the deadline meets the request, not the ping
		dials := 0
		pipes(r, func(ctx context.Context) (net.Conn, error) {
			dials++
			return silent(ctx)
		})
		const deadline = 2 * time.Second
		ctx, cancel := context.WithTimeout(t.Context(), deadline)
		defer cancel()
		start := time.Now()
		_, err = r.Head(ctx, KindManifest, repo, "latest")
		if !errors.Is(err, ErrTimeout) || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v", err)
		}
		if took := time.Since(start); took != deadline || dials != 1 {
			t.Errorf("%d requests in %s, want 1 in %s", dials, took, deadline)
		}
	})
}

// TestClosed: Close ends a token request in progress.
func TestClosed(t *testing.T) {
	t.Parallel()
	up, _ := image(t, upstreamtest.Options{Auth: upstreamtest.Bearer})
	arrived := make(chan struct{})
	up.Fault(upstreamtest.Match{Op: upstreamtest.Token}, upstreamtest.Arrived(arrived), upstreamtest.BlackHole())
	r := asking(t, up)
	failed := make(chan error)
	go func() {
		_, err := r.Head(t.Context(), KindManifest, repo, "latest")
		failed <- err
	}()
	<-arrived
	r.Close()
	if err := <-failed; !errors.Is(err, ErrUnavailable) || errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

func TestUnquoted(t *testing.T) {
	t.Parallel()
	refused := &net.OpError{Op: "dial", Err: errors.New(`"x"`)}
	for _, tc := range []struct {
		err  error
		want string
	}{
		{fmt.Errorf("transport connection broken: %w", errors.New(`malformed MIME header: missing colon: "Basic c2VjcmV0"`)), "transport connection broken: malformed MIME header: missing colon"},
		{io.ErrUnexpectedEOF, io.ErrUnexpectedEOF.Error()},
		{refused, refused.Error()},
	} {
		if got := unquoted(tc.err); got.Error() != tc.want {
			t.Errorf("%v became %v", tc.err, got)
		}
	}
}
