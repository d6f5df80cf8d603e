package admin

import (
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"github.com/cachalot-registry/cachalot/bounds"
	"github.com/cachalot-registry/cachalot/proxy"
	"github.com/cachalot-registry/cachalot/proxy/hosts"
)

// guard decides which requests the admin listener serves.
type guard struct {
	hosts    *hosts.List
	loopback bool // the listener is bound to a loopback address
	token    func() (name, token string, err error)
	origins  *http.CrossOriginProtection
	log      *slog.Logger
}

func newGuard(c Config) *guard {
	h := hosts.New(c.Hosts...)
	h.Private = !c.Loopback
	return &guard{hosts: h, loopback: c.Loopback, token: c.Token, origins: http.NewCrossOriginProtection(), log: c.Log}
}

// admit returns an error if it refuses a request, and the name of the token that the request
// has, or noToken. A privileged request, such as any change of state, needs the token if there
// is one, and otherwise a listener and a client on loopback. Any page could make a browser on
// that host send such a request. So without the token, the Host must be a name that no other
// site has, and the request must not come from another origin. This is so for reads too,
// because they show the names of private images.
func (g *guard) admit(w http.ResponseWriter, r *http.Request, privileged bool) (shown string, err error) {
	name, token, err := g.token()
	if err != nil && privileged {
		g.log.Error("cannot read the admin token; the admin API refuses changes", "token", name, "error", err)
		return noToken, problemf(http.StatusInternalServerError, "no_token", "the token that %s names cannot be read; the log says why", name)
	}
	given, ok := bearer(r)
	if err == nil && token != "" && ok && same(given, token) {
		return name, nil
	}
	switch {
	case !g.hosts.Serves(r.Host):
		return noToken, problemf(http.StatusMisdirectedRequest, "wrong_host",
			"%q is not a name of this listener; use its address, show a token, or add the name to admin.hosts in cachalot's configuration", bounds.Text(hosts.Name(r.Host)))
	case privileged && token != "":
		w.Header().Set("WWW-Authenticate", `Bearer realm="cachalot"`)
		if ok {
			return noToken, problemf(http.StatusUnauthorized, "wrong_token", "this is not the token of %s", name)
		}
		return noToken, problemf(http.StatusUnauthorized, "token_needed", "show the token of %s: Authorization: Bearer TOKEN", name)
	case privileged && !g.loopback:
		return noToken, problemf(http.StatusForbidden, "token_needed",
			"a change needs a token, because admin.listen is not a loopback address; set admin.token or admin.token_file in cachalot's configuration")
	case privileged && !hosts.IsLoopback(r.RemoteAddr):
		return noToken, problemf(http.StatusForbidden, "token_needed",
			"without admin.token in cachalot's configuration, only clients on its own host can do this")
	}
	if r.Header.Get("Origin") != "" && r.Header.Get("Origin") != "http://"+r.Host || g.origins.Check(r) != nil {
		return noToken, problemf(http.StatusForbidden, "cross_origin", "a page of another site cannot use this")
	}
	return noToken, nil
}

// noToken is the name for a request without the token.
const noToken = "none"

// protect serves h to requests that admit allows.
func (g *guard) protect(h http.Handler, privileged bool) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, err := g.admit(w, r, privileged); err != nil {
			defer func() { _ = http.NewResponseController(w).SetWriteDeadline(time.Time{}) }() // for the connection's next request
			_ = writeProblem(w, err)
			return
		}
		h.ServeHTTP(w, r)
	})
}

// bearer returns the token of a request (RFC 6750 section 2.1).
func bearer(r *http.Request) (string, bool) {
	scheme, token, ok := strings.Cut(r.Header.Get("Authorization"), " ")
	return strings.TrimSpace(token), ok && strings.EqualFold(scheme, "Bearer")
}

// same compares in a time that reveals nothing about the token, nor about its length.
func same(a, b string) bool {
	x, y := sha256.Sum256([]byte(a)), sha256.Sum256([]byte(b))
	return subtle.ConstantTimeCompare(x[:], y[:]) == 1
}

// audit is what a change adds to its audit line.
type audit struct {
	token  string // the name of the request's token, or noToken
	target string
	attrs  []slog.Attr
}

// record writes the audit line of a change, also of a refused one.
func (a *api) record(c *call, rt route, err error) {
	outcome := "done"
	attrs := []slog.Attr{
		slog.String("action", strings.ToLower(rt.method)+" "+rt.path), slog.String("target", bounds.Text(c.audit.target)),
		slog.String("remote", c.r.RemoteAddr), slog.String("token", c.audit.token),
	}
	if id := c.r.Header.Get("X-Request-Id"); id != "" {
		attrs = append(attrs, slog.String("request_id", bounds.Text(id)))
	}
	attrs = append(attrs, c.audit.attrs...)
	if p, ok := errors.AsType[*Problem](err); ok {
		outcome = "failed"
		if p.Status < http.StatusInternalServerError && p.Status != proxy.StatusClientGone {
			outcome = "refused"
		}
		attrs = append(attrs, slog.Int("status", p.Status), slog.String("code", p.Code), slog.String("detail", p.Detail))
	}
	attrs = append(attrs, slog.String("outcome", outcome))
	a.Log.InfoContext(c.r.Context(), "admin", "audit", slog.GroupValue(attrs...))
}
