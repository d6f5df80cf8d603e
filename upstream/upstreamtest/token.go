package upstreamtest

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
)

// issued is a token the token server gave out.
type issued struct {
	value, service string
	user           string
	scopes         []string
}

// Tokens are the tokens given out so far, oldest first.
func (r *Registry) Tokens() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var list []string
	for _, t := range r.issued {
		list = append(list, t.value)
	}
	return list
}

// RevokeTokens makes all tokens given out so far invalid.
func (r *Registry) RevokeTokens() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.revoked = len(r.issued)
}

// SetCredential changes the required username and password.
func (r *Registry) SetCredential(username, password string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.options.Username, r.options.Password = username, password
}

// credential checks Basic authentication. required: there is no access without it.
func (r *Registry) credential(h http.Header) (sent, right, required bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	user, password, sent := (&http.Request{Header: h}).BasicAuth()
	known, ok := r.options.Accounts[user]
	right = sent && (user == r.options.Username && password == r.options.Password || ok && password == known)
	required = (r.options.Username != "" || len(r.options.Accounts) > 0 || r.options.RefreshToken != "") && !r.options.AnonymousToo
	return sent, right, required
}

// spend counts a request against its user's quota, says in the answer what is
// left, and reports whether there was none.
func (r *Registry) spend(x *exchange) bool {
	limit := r.options.Quota
	if limit == 0 {
		return false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	left := limit - r.counted[x.record.User]
	spent := left == 0 && x.record.Op == GetManifest
	if x.record.Op == GetManifest && left > 0 {
		r.counted[x.record.User]++
		left--
	}
	x.header.Set("RateLimit-Limit", fmt.Sprintf("%d;w=21600", limit))
	x.header.Set("RateLimit-Remaining", fmt.Sprintf("%d;w=21600", left))
	return spent
}

// Refill gives every user the whole quota again.
func (r *Registry) Refill() {
	r.mu.Lock()
	defer r.mu.Unlock()
	clear(r.counted)
}

// SetChallenge changes the token realm and the service of the challenge. Tokens of another
// service become invalid. "" keeps a value.
func (r *Registry) SetChallenge(realm, service string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if realm != "" {
		r.realm = realm
	}
	if service != "" {
		r.service = service
	}
}

// authorized checks a request to /v2/. If it must be refused, challenge is what to answer.
func (r *Registry) authorized(q *Request) (challenge string, ok bool) {
	header := q.Header.Get("Authorization")
	switch r.options.Auth {
	case Basic:
		_, right, _ := r.credential(q.Header)
		return `Basic realm="upstreamtest"`, right
	case Bearer:
		r.mu.Lock()
		defer r.mu.Unlock()
		scope := r.options.Scope
		if scope == "" && q.Repo != "" {
			scope = "repository:" + q.Repo + ":pull"
		}
		challenge = fmt.Sprintf(`Bearer realm=%q,service=%q`, r.realm, r.service)
		if scope != "" {
			challenge += fmt.Sprintf(`,scope=%q`, scope)
		}
		value, isBearer := strings.CutPrefix(header, "Bearer ")
		for _, t := range r.issued[r.revoked:] {
			if isBearer && t.value == value && t.service == r.service && (scope == "" || slices.Contains(t.scopes, scope)) {
				r.known(q, t.user)
				return challenge, true
			}
		}
		return challenge, false
	}
	return "", true
}

// answerToken is the token server (distribution's Token Authentication
// Specification).
func (r *Registry) answerToken(x *exchange) {
	form := x.record.Query
	refreshed := x.record.Method == http.MethodPost && r.options.RefreshToken != "" &&
		form.Get("grant_type") == "refresh_token" && form.Get("refresh_token") == r.options.RefreshToken
	if sent, right, required := r.credential(x.record.Header); !refreshed && (sent && !right || !sent && required) {
		x.fail(http.StatusUnauthorized, "UNAUTHORIZED", "incorrect username or password")
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	t := issued{
		value:   fmt.Sprintf("canary-token-%d", len(r.issued)+1),
		service: form.Get("service"), scopes: form["scope"], user: x.record.User,
	}
	r.issued = append(r.issued, t)
	answer := map[string]any{"token": t.value}
	if r.options.AccessToken {
		answer = map[string]any{"access_token": t.value}
	}
	if r.options.ExpiresIn != 0 {
		answer["expires_in"] = r.options.ExpiresIn
	}
	x.ok("application/json", encode(answer))
}
