package upstream

import (
	"crypto/rand"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/google/go-containerregistry/pkg/authn"
)

// acr is an Azure registry and cachalot's managed identity.
type acr struct {
	identity, registry *cloudServer
	source             credentials
	sent               atomic.Int64 // requests by the registry's transport
}

// newACR uses a new client ID, because the library caches the tokens of an identity for the
// life of the process.
func newACR(t *testing.T, answer func(http.ResponseWriter, *http.Request, url.Values)) *acr {
	t.Helper()
	cloudless(t)
	a := &acr{}
	clientID := rand.Text()
	a.identity = newCloudServer(t, func(w http.ResponseWriter, r *http.Request, form url.Values) {
		if q := r.URL.Query(); q.Get("resource")+"/.default" != acrScope || q.Get("client_id") != clientID || r.Header.Get("X-IDENTITY-HEADER") != "header-"+canary {
			t.Errorf("asked for %s", r.URL)
		}
		respond(200, "application/json", fmt.Sprintf(`{"access_token": "entra-%s", "expires_on": "%d", "token_type": "Bearer"}`, canary, time.Now().Add(time.Hour).Unix()))(w, r, form)
	})
	a.registry = newCloudServer(t, func(w http.ResponseWriter, r *http.Request, form url.Values) {
		if r.Method != http.MethodPost || r.URL.Path != "/oauth2/exchange" || form.Get("grant_type") != "access_token" ||
			form.Get("service") != "acme.azurecr.io" || form.Get("access_token") != "entra-"+canary {
			t.Errorf("got %s %s with %v", r.Method, r.URL, form)
		}
		answer(w, r, form)
	})
	t.Setenv("AZURE_TOKEN_CREDENTIALS", "ManagedIdentityCredential")
	t.Setenv("AZURE_CLIENT_ID", clientID)
	t.Setenv("IDENTITY_ENDPOINT", a.identity.URL)
	t.Setenv("IDENTITY_HEADER", "header-"+canary)
	var err error
	a.source, err = trySource(t, Account{Keychain: "azure"}, "acme.azurecr.io", a.registry.URL, a)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func (a *acr) RoundTrip(req *http.Request) (*http.Response, error) {
	a.sent.Add(1)
	return once().RoundTrip(req)
}

// refreshToken makes a refresh token with an expiry.
func refreshToken(t *testing.T, expires time.Time) string {
	t.Helper()
	s, err := jwt.NewWithClaims(jwt.SigningMethodHS256, jwt.RegisteredClaims{ExpiresAt: jwt.NewNumericDate(expires)}).SignedString([]byte("key"))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestKeychainAzure(t *testing.T) {
	expires := time.Now().Add(3 * time.Hour)
	refresh := refreshToken(t, expires)
	a := newACR(t, respond(200, "application/json", fmt.Sprintf(`{"refresh_token": %q}`, refresh)))
	together(t, a.source, authn.AuthConfig{IdentityToken: refresh})
	together(t, a.source, authn.AuthConfig{IdentityToken: refresh})
	a.identity.wantCount(t, 1)
	a.registry.wantCount(t, 1)
	if n := a.sent.Load(); n != 1 {
		t.Errorf("%d requests went by the registry's transport", n)
	}
	wantRenewal(t, a.source, expires, acrEarly)
}

// TestKeychainAzureLife: the lifetime in the refresh token is used, within limits.
func TestKeychainAzureLife(t *testing.T) {
	now := time.Now()
	for _, tc := range []struct {
		name, refresh string
		expires       time.Time
	}{
		{"says nothing", "opaque", now.Add(acrLife)},
		{"a JWT that says nothing", strings.Join(strings.Split(refreshToken(t, now), ".")[:1], "") + ".e30.", now.Add(acrLife)},
		{"too much", refreshToken(t, now.Add(1000*time.Hour)), now.Add(maxTokenLife)},
	} {
		t.Run(tc.name, func(t *testing.T) {
			a := newACR(t, respond(200, "application/json", fmt.Sprintf(`{"refresh_token": %q}`, tc.refresh)))
			wantGot(t, a.source, authn.AuthConfig{IdentityToken: tc.refresh})
			wantRenewal(t, a.source, tc.expires, acrEarly)
		})
	}
	t.Run("expired", func(t *testing.T) {
		refresh := refreshToken(t, now.Add(-time.Minute))
		a := newACR(t, respond(200, "application/json", fmt.Sprintf(`{"refresh_token": %q}`, refresh)))
		for range 2 {
			wantGot(t, a.source, authn.AuthConfig{IdentityToken: refresh})
		}
		a.registry.wantCount(t, 2)
	})
}

func TestKeychainAzureExchangeFails(t *testing.T) {
	for _, tc := range []struct {
		name   string
		answer func(http.ResponseWriter, *http.Request, url.Values)
		want   string
	}{
		{
			"refused", respond(401, "application/json", `{"errors": [{"code": "UNAUTHORIZED", "message": "entra-`+canary+` is not welcome"}]}`),
			" answered 401 UNAUTHORIZED [redacted] is not welcome",
		},
		{"refused, no JSON", respond(403, "text/html", canary), " answered 403"},
		{"no token", respond(200, "application/json", `{"access_token": "`+canary+`"}`), " sent no refresh token"},
		{"no JSON", respond(200, "application/json", canary), " sent no refresh token"},
		{"endless", func(w http.ResponseWriter, r *http.Request, _ url.Values) {
			for r.Context().Err() == nil {
				if _, err := w.Write([]byte(strings.Repeat(" ", 32<<10))); err != nil {
					return
				}
			}
		}, " sent no refresh token"},
		{"too long a token", respond(200, "application/json", `{"refresh_token": "`+strings.Repeat("x", maxToken+1)+`"}`), " sent no refresh token"},
		{"cut off", func(w http.ResponseWriter, _ *http.Request, _ url.Values) {
			w.Header().Set("Content-Length", "100")
			_, _ = w.Write([]byte(`{"refresh`))
		}, "read the answer of "},
		{"no answer", func(http.ResponseWriter, *http.Request, url.Values) { panic(http.ErrAbortHandler) }, "EOF"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			a := newACR(t, tc.answer)
			wantFailed(t, a.source, "exchange the token of Entra ID: ", tc.want)
			a.registry.wantCount(t, 1)
		})
	}
}

// TestKeychainAzureRedirect: a redirect does not get the token of Entra ID.
func TestKeychainAzureRedirect(t *testing.T) {
	thief := newCloudServer(t, respond(200, "application/json", `{"refresh_token": "x"}`))
	a := newACR(t, func(w http.ResponseWriter, r *http.Request, _ url.Values) {
		http.Redirect(w, r, thief.URL+"/oauth2/exchange", http.StatusTemporaryRedirect)
	})
	wantFailed(t, a.source, "answered 307")
	thief.wantCount(t, 0)
}

func TestKeychainAzureIdentityFails(t *testing.T) {
	for _, tc := range []struct {
		name   string
		answer func(http.ResponseWriter, *http.Request, url.Values)
		want   string
	}{
		{
			"refused", respond(400, "application/json", `{"error": "invalid_client", "error_description": "AADSTS7000215: `+canary+`"}`),
			" answered 400 invalid_client AADSTS7000215",
		},
		{"refused otherwise", respond(401, "text/html", canary), " answered 401"},
		{"no JSON", respond(200, "application/json", canary), "no account was found; give cachalot"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			a := newACR(t, nil)
			a.identity.will(tc.answer)
			wantFailed(t, a.source, "get a token of Entra ID: ", tc.want)
			a.registry.wantCount(t, 0)
		})
	}
}

// TestKeychainAzureAccount: an account that is missing at first is found later.
func TestKeychainAzureAccount(t *testing.T) {
	a := newACR(t, respond(200, "application/json", `{"refresh_token": "x"}`))
	t.Setenv("AZURE_TOKEN_CREDENTIALS", "EnvironmentCredential")
	for range 2 {
		wantFailed(t, a.source, "no account was found; give cachalot a workload or managed identity")
	}
	t.Setenv("AZURE_TOKEN_CREDENTIALS", canary)
	wantFailed(t, a.source, errUntold.Error())
	a.identity.wantCount(t, 0)
	t.Setenv("AZURE_TOKEN_CREDENTIALS", "ManagedIdentityCredential")
	wantGot(t, a.source, authn.AuthConfig{IdentityToken: "x"})
}
