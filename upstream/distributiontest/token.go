package distributiontest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/cachalot-registry/cachalot/upstream/upstreamtest"
)

const (
	tokenService = "distribution"
	tokenIssuer  = "upstreamtest"
	tokenKeyID   = "upstreamtest"
)

// signer makes the tokens distribution's token back end accepts.
type signer struct{ key *ecdsa.PrivateKey }

func newSigner(tb upstreamtest.TB) *signer {
	tb.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		tb.Fatalf("make a key: %v", err)
	}
	return &signer{key}
}

// writeKeys writes the public key as a JSON Web Key Set (RFC 7517).
func (s *signer) writeKeys(tb upstreamtest.TB, dir string) string {
	tb.Helper()
	point, err := s.key.PublicKey.Bytes() // 4, x, y
	if err != nil {
		tb.Fatalf("encode the key: %v", err)
	}
	half := (len(point) - 1) / 2
	keys := map[string]any{"keys": []map[string]string{{
		"kty": "EC", "crv": "P-256", "kid": tokenKeyID, "use": "sig", "alg": "ES256",
		"x": base64.RawURLEncoding.EncodeToString(point[1 : 1+half]),
		"y": base64.RawURLEncoding.EncodeToString(point[1+half:]),
	}}}
	file := filepath.Join(dir, "jwks.json")
	b, err := json.Marshal(keys)
	if err == nil {
		err = os.WriteFile(file, b, 0o600)
	}
	if err != nil {
		tb.Fatalf("write the key set: %v", err)
	}
	return file
}

// access is one entry of a token's access claim.
type access struct {
	Type    string   `json:"type"`
	Name    string   `json:"name"`
	Actions []string `json:"actions"`
}

func (s *signer) sign(subject string, seconds int, grants []access) (string, error) {
	now := time.Now()
	t := jwt.NewWithClaims(jwt.SigningMethodES256, jwt.MapClaims{
		"iss": tokenIssuer, "sub": subject, "aud": tokenService, "access": grants,
		"iat": now.Unix(), "nbf": now.Unix(), "exp": now.Add(time.Duration(seconds) * time.Second).Unix(),
		"jti": rand.Text(),
	})
	t.Header["kid"] = tokenKeyID
	return t.SignedString(s.key)
}

// serveToken is a token server (distribution's Token Authentication Specification).
func (r *Registry) serveToken(w http.ResponseWriter, req *http.Request) {
	user, password, has := req.BasicAuth()
	known := has && user == r.options.Username && password == r.options.Password
	if has && !known || !has && r.options.Private {
		http.Error(w, "incorrect username or password", http.StatusUnauthorized)
		return
	}
	grants := []access{}
	for scope := range strings.FieldsSeq(strings.Join(req.URL.Query()["scope"], " ")) {
		parts := strings.Split(scope, ":")
		if len(parts) != 3 {
			continue
		}
		actions := []string{"pull"}
		if known {
			actions = strings.Split(parts[2], ",")
		}
		grants = append(grants, access{parts[0], parts[1], actions})
	}
	t, err := r.signer.sign(user, r.options.ExpiresIn, grants)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(map[string]any{
		"token": t, "expires_in": r.options.ExpiresIn, "issued_at": time.Now().UTC().Format(time.RFC3339),
	}) // the client may have left
}
