package proxy

import (
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strings"
)

// admit says whether a request may be answered. What changes state needs the
// token, where there is one, and else a listener and a client on loopback. A
// browser on that host could be made to send both by any page: so without a token
// the Host must be loopback too (DNS rebinding), and nothing may come from another
// origin. That holds for reading too, for the names of private images are nobody
// else's business.
func (a *api) admit(c *call, rt route) error {
	c.audit.token = "none"
	name, token, err := a.Token()
	if err != nil && rt.changes {
		a.Log.Error("cannot read the admin token: nothing can be changed", "token", name, "error", err)
		return problemf(http.StatusInternalServerError, "no_token", "the token that %s names cannot be read; the log says why", name)
	}
	shown, given := bearer(c.r)
	switch {
	case err == nil && token != "" && given && same(shown, token):
		c.audit.token = name
		return nil
	case rt.changes && token != "":
		c.w.Header().Set("WWW-Authenticate", `Bearer realm="cachalot"`)
		if given {
			return problemf(http.StatusUnauthorized, "wrong_token", "this is not the token of %s", name)
		}
		return problemf(http.StatusUnauthorized, "token_needed", "show the token of %s: Authorization: Bearer TOKEN", name)
	case rt.changes && !a.Loopback:
		return problemf(http.StatusForbidden, "token_needed",
			"admin.listen is not a loopback address, so that changes need a token; set admin.token or admin.token_file in cachalot's configuration")
	case rt.changes && !isLoopback(c.r.RemoteAddr):
		return problemf(http.StatusForbidden, "token_needed",
			"without admin.token in cachalot's configuration, changes are for clients on its own host")
	case a.Loopback && !isLoopback(c.r.Host):
		return problemf(http.StatusForbidden, "wrong_host", "ask for 127.0.0.1 or localhost, or show a token; this request asks for another host")
	}
	if c.r.Header.Get("Origin") != "" && c.r.Header.Get("Origin") != "http://"+c.r.Host || a.guard.Check(c.r) != nil {
		return problemf(http.StatusForbidden, "cross_origin", "another site's page may not ask this")
	}
	return nil
}

// bearer is the token that a request shows (RFC 6750 section 2.1).
func bearer(r *http.Request) (string, bool) {
	scheme, token, ok := strings.Cut(r.Header.Get("Authorization"), " ")
	return strings.TrimSpace(token), ok && strings.EqualFold(scheme, "Bearer")
}

// same compares in a time that tells nothing, not of the length either.
func same(a, b string) bool {
	x, y := sha256.Sum256([]byte(a)), sha256.Sum256([]byte(b))
	return subtle.ConstantTimeCompare(x[:], y[:]) == 1
}

// isLoopback says whether a host, with or without a port, is this one by its
// address or the one name that no resolver can turn elsewhere (RFC 6761 section 6.3).
func isLoopback(hostport string) bool {
	host, _, err := net.SplitHostPort(hostport)
	if err != nil {
		host = strings.Trim(hostport, "[]")
	}
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.Unmap().IsLoopback() || strings.EqualFold(strings.TrimSuffix(host, "."), "localhost")
}

// audit is what the log says of a change.
type audit struct {
	token  string // the name of what was shown; "none"
	target string
	attrs  []slog.Attr
}

// record logs a change, or that it was refused.
func (a *api) record(c *call, rt route, err error) {
	outcome := "done"
	attrs := []slog.Attr{
		slog.String("action", strings.ToLower(rt.method)+" "+rt.path), slog.String("target", bounded(c.audit.target)),
		slog.String("remote", c.r.RemoteAddr), slog.String("token", c.audit.token),
	}
	if id := c.r.Header.Get("X-Request-Id"); id != "" {
		attrs = append(attrs, slog.String("request_id", bounded(id)))
	}
	attrs = append(attrs, c.audit.attrs...)
	if p, ok := errors.AsType[*Problem](err); ok {
		outcome = "failed"
		if p.Status < http.StatusInternalServerError && p.Status != statusClientGone {
			outcome = "refused"
		}
		attrs = append(attrs, slog.Int("status", p.Status), slog.String("code", p.Code), slog.String("detail", p.Detail))
	}
	attrs = append(attrs, slog.String("outcome", outcome))
	a.Log.InfoContext(c.r.Context(), "admin", "audit", slog.GroupValue(attrs...))
}
