package upstream

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/prometheus/client_golang/prometheus/testutil"
)

// loginOnly is a registry in memory that requires a login for all requests, by its own token
// server or by Basic, and counts the logins.
type loginOnly struct {
	*odd
	basic    bool
	password atomic.Value // the right one
	denied   atomic.Value // a repository that is denied to all; "" or nil: none
	logins   atomic.Int64
}

func (g *loginOnly) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	user, password, shown := req.BasicAuth()
	right := user == "me" && password == g.password.Load().(string)
	denied, _ := g.denied.Load().(string)
	if shown {
		g.logins.Add(1)
	}
	switch {
	case req.URL.Path == "/token" && !right, g.basic && shown && !right:
		w.WriteHeader(http.StatusUnauthorized)
	case req.URL.Path == "/token" && denied != "" && strings.Contains(req.URL.Query().Get("scope"), denied):
		w.WriteHeader(http.StatusForbidden)
	case g.basic && shown && denied != "" && strings.Contains(req.URL.Path, denied):
		w.WriteHeader(http.StatusUnauthorized)
	case req.URL.Path == "/token":
		_, _ = fmt.Fprintf(w, `{"token":"%s","expires_in":60}`, password)
	case g.basic && !shown:
		w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
		w.WriteHeader(http.StatusUnauthorized)
	case !g.basic && req.Header.Get("Authorization") != "Bearer "+g.password.Load().(string):
		w.Header().Set("WWW-Authenticate", `Bearer realm="http://r.test/token",service="r"`)
		w.WriteHeader(http.StatusUnauthorized)
	default:
		g.odd.ServeHTTP(w, req)
	}
}

// TestLoginRefused: after a refused login, none is tried for a while, for all tags. A new
// password is tried at once. If one repository is denied, the others are served (L3, L4).
func TestLoginRefused(t *testing.T) {
	t.Parallel()
	for _, basic := range []bool{false, true} {
		t.Run(fmt.Sprintf("basic %v", basic), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				g := &loginOnly{odd: newOdd(nil), basic: basic}
				g.password.Store("other")
				r := served(t, g.ServeHTTP)
				password := "mine"
				for _, e := range r.endpoints {
					e.accounts[0].source = source(func() (string, string) { return "me", password })
				}
				poll := func(during time.Duration) (failed int) {
					for begun, i := time.Now(), 0; time.Since(begun) < during; i++ {
						_, err := r.Resolve(t.Context(), fmt.Sprintf("library/a%d", i%40), "latest")
						if err != nil {
							failed++
							if !errors.Is(err, ErrDenied) || SaysNo(err) {
								t.Fatal(err)
							}
						}
						time.Sleep(time.Second)
					}
					return failed
				}
				if poll(5*time.Minute) < 299 {
					t.Error("it succeeded")
				}
				if n := g.logins.Load(); n > 6 {
					t.Errorf("%d logins in 5 minutes", n)
				}
				if n := testutil.ToFloat64(r.metrics.refused.WithLabelValues("r.test")); n != 1 {
					t.Errorf("%v accounts refused", n)
				}
				password = "other" // the file has a new one
				if n := poll(time.Minute); n != 0 {
					t.Errorf("%d failed with another password", n)
				}
				if n := testutil.ToFloat64(r.metrics.refused.WithLabelValues("r.test")); n != 0 {
					t.Errorf("%v accounts refused", n)
				}
				// One repository is denied to the account. The others are served.
				g.denied.Store("secret/app")
				time.Sleep(2 * time.Minute) // the tokens expire
				for range 30 {
					if _, err := r.Resolve(t.Context(), "secret/app", "latest"); !errors.Is(err, ErrDenied) {
						t.Errorf("secret: %v", err)
					}
					if _, err := r.Resolve(t.Context(), "library/a1", "latest"); err != nil {
						t.Errorf("beside it: %v", err)
					}
					time.Sleep(time.Second)
				}
			})
		})
	}
}

// source gives a test's user and password.
type source func() (user, password string)

func (s source) get(context.Context) (authn.AuthConfig, error) {
	user, password := s()
	return authn.AuthConfig{Username: user, Password: password}, nil
}
