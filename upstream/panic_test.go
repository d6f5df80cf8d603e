package upstream

import (
	"context"
	"errors"
	"net"
	"testing"

	"github.com/google/go-containerregistry/pkg/authn"

	"github.com/cachalot-registry/cachalot/task"
	"github.com/cachalot-registry/cachalot/upstream/upstreamtest"
)

// TestPanic: a panic in a goroutine of this package or of the transport is the error of its
// request.
func TestPanic(t *testing.T) {
	t.Parallel()
	up, img := image(t, upstreamtest.Options{})
	other, _ := image(t, upstreamtest.Options{})
	for name, r := range map[string]*Registry{
		"connecting":      dialing(t, Config{URLs: []string{up.URL}, Dial: func(context.Context, string, string) (net.Conn, error) { panic("a bug") }}),
		"asking two URLs": dialing(t, Config{URLs: []string{up.URL, other.URL}, Dial: func(context.Context, string, string) (net.Conn, error) { panic("a bug") }}),
	} {
		_, err := r.Open(t.Context(), KindBlob, repo, img.Config.Digest, Span{})
		if _, ok := errors.AsType[*task.PanicError](err); !ok {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// panics is an account whose source has a bug.
type panics struct{}

func (panics) get(context.Context) (authn.AuthConfig, error) { panic("a bug") }

// TestPanic_Credential: a panic of a credential's source is an error for its callers.
func TestPanic_Credential(t *testing.T) {
	t.Parallel()
	up, img := image(t, upstreamtest.Options{Auth: upstreamtest.Bearer, Username: "me", Password: "secret"})
	r := dialing(t, Config{URLs: []string{up.URL}, Accounts: []Account{{Username: "me", Password: "secret"}}})
	r.endpoints[0].accounts[0].source = panics{}
	if _, err := r.Open(t.Context(), KindBlob, repo, img.Config.Digest, Span{}); err == nil {
		t.Error("a token without an error")
	}
	s := &shared{ask: func(context.Context) (granted, error) { panic("a bug") }, failed: func(error, bool) {}}
	if _, err := s.get(t.Context()); err == nil {
		t.Error("a credential without an error")
	}
}
