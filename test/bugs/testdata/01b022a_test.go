package upstream

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
)

// TestCredentialAskedOnce is TestCredentialOnce for a tree without the fix, where
// the other tests of its file do not build.
func TestCredentialAskedOnce(t *testing.T) {
	for range 2000 {
		var asked atomic.Int64
		c := &shared{ask: func(context.Context) (granted, error) {
			asked.Add(1)
			return lasting(authn.AuthConfig{Username: "u", Password: "p"}, time.Now().Add(time.Hour), time.Minute), nil
		}}
		together(t, c, authn.AuthConfig{Username: "u", Password: "p"})
		if n := asked.Load(); n != 1 {
			t.Fatalf("asked %d times", n)
		}
	}
}
