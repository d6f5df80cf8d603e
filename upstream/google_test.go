package upstream

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/google/go-containerregistry/pkg/authn"
)

func googleSource(t *testing.T) credentials {
	t.Helper()
	c, err := trySource(t, Account{Keychain: "google"}, "gcr.io", "https://mirror.test", nil)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// serviceAccount returns the key file of an account that gets its tokens from server.
func serviceAccount(t *testing.T, email, server string) string {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(map[string]string{
		"type": "service_account", "client_email": email, "token_uri": server,
		"private_key": string(pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)})),
	})
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func googleAnswer(token string, life int) string {
	return fmt.Sprintf(`{"access_token": %q, "expires_in": %d, "token_type": "Bearer"}`, token, life)
}

// TestKeychainGoogle: a key file that is missing at first is found later, and read again when
// its token has expired.
func TestKeychainGoogle(t *testing.T) {
	cloudless(t)
	var issuers []string
	server := newCloudServer(t, nil)
	answer := func(token string, life int) {
		server.will(func(w http.ResponseWriter, r *http.Request, form url.Values) {
			var claims jwt.MapClaims
			if _, _, err := jwt.NewParser().ParseUnverified(form.Get("assertion"), &claims); err != nil {
				t.Error(err)
			}
			issuers = append(issuers, fmt.Sprint(claims["iss"]))
			if claims["scope"] != googleScope {
				t.Errorf("asked for %v", claims["scope"])
			}
			respond(200, "application/json", googleAnswer(token, life))(w, r, form)
		})
	}
	file := filepath.Join(t.TempDir(), "key.json")
	t.Setenv("GOOGLE_APPLICATION_CREDENTIALS", file)
	c := googleSource(t)
	for range 2 {
		wantFailed(t, c, "GOOGLE_APPLICATION_CREDENTIALS: stat "+file)
	}
	server.wantCount(t, 0)

	write(t, file, serviceAccount(t, "one@test", server.URL))
	answer("a", -60)
	wantGot(t, c, authn.AuthConfig{Username: googleUser, Password: "a"})
	server.wantCount(t, 1)

	write(t, file, serviceAccount(t, "two@test", server.URL))
	answer("b", 3600)
	expires := time.Now().Add(time.Hour)
	together(t, c, authn.AuthConfig{Username: googleUser, Password: "b"})
	together(t, c, authn.AuthConfig{Username: googleUser, Password: "b"})
	server.wantCount(t, 2)
	wantRenewal(t, c, expires, googleEarly)
	if got := strings.Join(issuers, " "); got != "one@test two@test" {
		t.Errorf("asked as %s", got)
	}
}

// TestKeychainGoogleHome: the file of "gcloud auth application-default login" is used.
func TestKeychainGoogleHome(t *testing.T) {
	cloudless(t)
	server := newCloudServer(t, respond(200, "application/json", googleAnswer("a", 3600)))
	dir := filepath.Join(os.Getenv("HOME"), ".config", "gcloud")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "application_default_credentials.json"), serviceAccount(t, "one@test", server.URL))
	wantGot(t, googleSource(t), authn.AuthConfig{Username: googleUser, Password: "a"})
	server.wantCount(t, 1)
}

// TestKeychainGoogleMetadata: a metadata server that is not ready at first, as when a GKE pod
// starts, is asked again.
func TestKeychainGoogleMetadata(t *testing.T) {
	cloudless(t)
	c := googleSource(t)
	wantFailed(t, c, "ask "+nowhere+": dial tcp", "GOOGLE_APPLICATION_CREDENTIALS")

	server := newCloudServer(t, respond(404, "text/html", canary))
	t.Setenv("GCE_METADATA_HOST", strings.TrimPrefix(server.URL, "http://"))
	wantFailed(t, c, "metadata server: no service account; give cachalot a service account")
	server.will(respond(403, "text/html", canary))
	wantFailed(t, c, "it answered 403")
	server.will(respond(200, "application/json", `["`+canary+`"]`))
	wantFailed(t, c, "the answer has no token")
	server.will(respond(200, "application/json", "{}"))
	wantFailed(t, c, "the answer has no token")
	server.wantCount(t, 4)

	server.will(func(w http.ResponseWriter, r *http.Request, form url.Values) {
		if r.URL.Path != "/computeMetadata/v1/instance/service-accounts/default/token" || r.URL.Query().Get("scopes") != googleScope || r.Header.Get("Metadata-Flavor") != "Google" {
			t.Errorf("asked for %s", r.URL)
		}
		respond(200, "application/json", googleAnswer("a", 3600))(w, r, form)
	})
	expires := time.Now().Add(time.Hour)
	together(t, c, authn.AuthConfig{Username: googleUser, Password: "a"})
	together(t, c, authn.AuthConfig{Username: googleUser, Password: "a"})
	server.wantCount(t, 5)
	wantRenewal(t, c, expires, googleEarly)
}

func TestKeychainGoogleFails(t *testing.T) {
	cloudless(t)
	server := newCloudServer(t, nil)
	host := strings.TrimPrefix(server.URL, "http://")
	account := serviceAccount(t, "one@test", server.URL)
	user := `{"type": "authorized_user", "client_id": "a", "client_secret": "` + canary + `", "refresh_token": "` + canary + `"}`
	unusable := "not a usable credentials file"
	for _, tc := range []struct {
		name, file string
		answer     func(http.ResponseWriter, *http.Request, url.Values)
		want       string
		count      int
	}{
		{"refused", account, respond(400, "application/json", `{"error": "invalid_grant", "error_description": "`+canary+`"}`), host + " answered 400 invalid_grant", 1},
		{"refused, with the assertion", account, func(w http.ResponseWriter, r *http.Request, form url.Values) {
			respond(401, "text/plain", canary+form.Get("assertion"))(w, r, form)
		}, host + " answered 401", 1},
		{"with a code that is none", account, respond(400, "application/json", `{"error": "`+canary+`"}`), host + " answered 400", 1},
		{"no JSON", account, respond(200, "application/json", canary), errUntold.Error(), 1},
		{"cut off", account, func(w http.ResponseWriter, _ *http.Request, _ url.Values) {
			w.Header().Set("Content-Length", "100")
			panic(http.ErrAbortHandler)
		}, "ask " + host + ": EOF", 1},
		{"nobody there", serviceAccount(t, "one@test", "http://"+nowhere), nil, "ask " + nowhere + ": dial tcp", 0},
		{"no key", strings.Replace(account, "BEGIN RSA", canary, 1), nil, errUntold.Error(), 0},
		{"an unknown type", `{"type": "` + canary + `"}`, nil, unusable, 0},
		{"not JSON", canary, nil, unusable, 0},
		{"another shape", `{"type": {"` + canary + `": 1}}`, nil, unusable, 0},
		{"empty", "", nil, unusable, 0},
		{"no source", `{"type": "impersonated_service_account", "source_credentials": ` + user + `}`, nil, unusable, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			file := write(t, filepath.Join(t.TempDir(), "key.json"), tc.file)
			t.Setenv("GOOGLE_APPLICATION_CREDENTIALS", file)
			server.mu.Lock()
			before := server.count
			server.mu.Unlock()
			server.will(tc.answer)
			wantFailed(t, googleSource(t), "get a Google token with "+file+": ", tc.want)
			server.wantCount(t, before+tc.count)
		})
	}
}
