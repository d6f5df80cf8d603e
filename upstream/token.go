package upstream

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
)

const (
	opToken = "token"
	// maxTokenAnswer bounds a token server's response; real ones are a few KiB.
	maxTokenAnswer = 1 << 20
	// maxToken bounds a token: servers refuse longer headers anyway.
	maxToken = 64 << 10
	// defaultTokenLife is the token specification's default. maxTokenLife is a day: a
	// token with a wrong expires_in does not outlive a change of rights by much more.
	defaultTokenLife = 60 * time.Second
	maxTokenLife     = 24 * time.Hour
)

// fetchToken requests a token from a token server (distribution's "Token Authentication
// Specification", and its "OAuth2 Token Authentication" for an identity token).
// Many callers wait for it, so the end of the registry ends it, and the end of a caller
// does not. It takes at most Timeouts.ResponseHeader altogether.
func (a *account) fetchToken(ctx context.Context, realm *url.URL, key tokenKey, credentialed bool) (token, error) {
	r := a.endpoint.registry
	ctx, end := r.apart(ctx)
	defer end()
	ctx, cancel := context.WithTimeout(ctx, r.cfg.Timeouts.ResponseHeader)
	defer cancel()
	cred, err := a.credential(ctx, opToken)
	if err != nil {
		return token{}, r.closing(err)
	}
	if cred.RegistryToken != "" { // it is a token already
		return token{value: cred.RegistryToken, made: time.Now(), expires: time.Now().Add(defaultTokenLife)}, nil
	}
	if !credentialed {
		cred = authn.AuthConfig{}
	}
	shown := cred != authn.AuthConfig{}
	if err := a.login.resting(cred, key.scope); shown && err != nil {
		return token{}, err
	}
	if err := a.spent(opToken); err != nil {
		return token{}, err
	}
	req, err := tokenRequest(ctx, realm, key, cred)
	if err != nil {
		return token{}, r.fail(opToken, ErrInvalid, "the token realm is not an http or https URL")
	}
	secrets := []string{cred.Password, cred.IdentityToken, base64.StdEncoding.EncodeToString([]byte(cred.Username + ":" + cred.Password))}
	resp, err := a.askToken(ctx, req, shown)
	if err != nil {
		return token{}, r.closing(err)
	}
	defer resp.Body.Close()
	switch status := resp.StatusCode; {
	case status == http.StatusOK:
		if shown {
			a.loginAccepted(cred, key.scope)
		}
	case status == http.StatusUnauthorized, status == http.StatusForbidden, status == http.StatusTooManyRequests, status >= 500:
		if status == http.StatusTooManyRequests {
			a.budget.limited(opToken, resp.Header)
		}
		failed := r.statusError(opToken, resp, secrets...)
		if shown && (status == http.StatusUnauthorized || status == http.StatusForbidden) {
			a.loginRefused(cred, key.scope, failed)
		}
		return token{}, failed
	default: // redirects too: a credential must not follow them
		failed := r.statusError(opToken, resp, secrets...)
		failed.Err = ErrUnavailable
		return token{}, failed
	}
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxTokenAnswer+1))
	if err != nil {
		return token{}, r.closing(err)
	}
	if len(b) > maxTokenAnswer {
		return token{}, r.fail(opToken, ErrUnavailable, "the answer is longer than %d bytes", maxTokenAnswer).because(errors.New("of " + realm.Host))
	}
	t, err := parseToken(b, serverTime(resp.Header))
	if err != nil {
		return token{}, r.fail(opToken, ErrUnavailable, "%v", err).because(errors.New("of " + realm.Host))
	}
	return t, nil
}

// askToken sends a token request. It follows redirects only if the request has no
// credential.
func (a *account) askToken(ctx context.Context, req *http.Request, shown bool) (*http.Response, error) {
	r := a.endpoint.registry
	for seen := map[string]bool{}; len(seen) < maxRedirects && !seen[req.URL.String()]; {
		seen[req.URL.String()] = true
		resp, err := r.roundTrip(ctx, purpose{op: opToken}, req)
		if err != nil || shown || !isRedirect(resp.StatusCode) {
			return resp, err
		}
		location := resp.Header.Get("Location")
		drain(resp)
		next, wrong := r.redirectTarget(opToken, a.endpoint.base, req.URL, location, false)
		if wrong != nil {
			wrong.Err = ErrUnavailable
			return nil, wrong
		}
		if req, err = http.NewRequestWithContext(ctx, http.MethodGet, next.String(), nil); err != nil {
			return nil, r.fail(opToken, ErrUnavailable, "a redirect to an invalid URL")
		}
	}
	return nil, r.fail(opToken, ErrUnavailable, "redirect loop or more than %d redirects", maxRedirects)
}

// tokenRequest returns a token request with the credential cred. A refresh token is sent
// by POST (RFC 6749 section 6), so that no log has it.
func tokenRequest(ctx context.Context, realm *url.URL, key tokenKey, cred authn.AuthConfig) (*http.Request, error) {
	u := *realm
	u.Fragment = ""
	if cred.IdentityToken != "" {
		form := url.Values{"grant_type": {"refresh_token"}, "refresh_token": {cred.IdentityToken}, "client_id": {"cachalot"}, "scope": {key.scope}}
		if key.service != "" {
			form.Set("service", key.service)
		}
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, u.String(), strings.NewReader(form.Encode()))
		if err == nil {
			req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		}
		return req, err
	}
	v := u.Query()
	if key.service != "" {
		v.Set("service", key.service)
	}
	v.Del("scope")
	for s := range strings.FieldsSeq(key.scope) {
		v.Add("scope", s)
	}
	u.RawQuery = v.Encode()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err == nil && cred.Username != "" {
		req.SetBasicAuth(cred.Username, cred.Password)
	}
	return req, err
}

// closing turns a cancellation into a failure: the registry was closed. No caller's
// context is involved in work for many callers.
func (r *Registry) closing(err error) error {
	if errors.Is(err, context.Canceled) {
		return r.fail(opToken, ErrUnavailable, "the registry was closed")
	}
	return err
}

// serverTime returns the time of the token server's clock, so that issued_at can be
// compared even if our clock is wrong.
func serverTime(h http.Header) time.Time {
	if t, err := http.ParseTime(h.Get("Date")); err == nil {
		return t
	}
	return time.Now()
}

func parseToken(b []byte, served time.Time) (token, error) {
	var wire struct {
		Token       string      `json:"token"`
		AccessToken string      `json:"access_token"`
		ExpiresIn   json.Number `json:"expires_in"`
		IssuedAt    string      `json:"issued_at"`
	}
	// The decoder's errors quote the input, which may be a token.
	if json.Unmarshal(b, &wire) != nil {
		return token{}, errors.New("not a JSON token answer")
	}
	value := wire.Token
	if value == "" {
		value = wire.AccessToken
	}
	if value == "" {
		return token{}, errors.New("the answer has no token")
	}
	if len(value) > maxToken || strings.IndexFunc(value, func(c rune) bool { return c <= ' ' || c >= 0x7f }) >= 0 {
		return token{}, fmt.Errorf("the token is longer than %d bytes or not printable", maxToken)
	}
	life := defaultTokenLife
	if s, err := wire.ExpiresIn.Float64(); err == nil && s > 0 {
		life = time.Duration(min(s, maxTokenLife.Seconds()) * float64(time.Second))
	}
	if issued, err := time.Parse(time.RFC3339, wire.IssuedAt); err == nil {
		life = max(life-max(served.Sub(issued), 0), 0)
	}
	// The token is renewed a little early, so that it does not expire in transit.
	life -= min(life/10, 30*time.Second)
	return token{value: value, made: time.Now(), expires: time.Now().Add(life)}, nil
}
