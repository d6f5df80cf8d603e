package upstream

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/cenkalti/backoff/v5"
)

const (
	maxTries     = 3
	maxRetryTime = 10 * time.Second // no try begins later than this
	maxRedirects = 8
	maxRenewals  = 2 // of the authorization, in one request
)

// query is one request to a registry, independent of the URL that it is sent to.
type query struct {
	op, method string
	repo       string
	path       string // after /v2/
	raced      bool   // may be sent to several URLs at once
	rawQuery   string
	header     http.Header

	// optional: a direct client would not send it, so its failure says nothing about the
	// registry. It is tried once.
	optional bool
	// accept refuses a response that does not fit q; the next URL is tried then. Nil: any
	// 2xx is accepted.
	accept func(*http.Response) error
	skip   []*endpoint // not tried: they sent wrong or incomplete content
}

// ask sends q to each URL in order, and again after a pause if all failed and the failure
// is transient. The response has a 2xx status and a *body that the caller must close.
func (r *Registry) ask(ctx context.Context, q query) (resp *http.Response, err error) {
	if !validPath(q.path) {
		return nil, r.fail(q.op, ErrInvalid, "not a name that can be asked for")
	}
	ctx, end := r.traceQuestion(ctx, q)
	defer func() { end(err) }()
	var before error
	pause := &restingPause{BackOff: r.pause()}
	resp, err = backoff.Retry(ctx, func() (*http.Response, error) {
		resp, err := r.askEach(ctx, q)
		pause.rest = restOf(err)
		deadline, bounded := ctx.Deadline()
		switch {
		case err == nil:
			return resp, nil
		case errors.Is(err, errNotAsked) && before != nil:
			return nil, backoff.Permanent(before) // the failure that opened the breaker says more
		case ctx.Err() != nil, !transient(err), errors.Is(err, errNotAsked), bounded && time.Until(deadline) < pause.rest:
			return nil, backoff.Permanent(err)
		}
		before = err
		return nil, err
	}, backoff.WithBackOff(pause), backoff.WithMaxTries(q.tries()), backoff.WithMaxElapsedTime(maxRetryTime))
	if err == nil {
		return resp, nil
	}
	if permanent, ok := errors.AsType[*backoff.PermanentError](err); ok {
		err = permanent.Unwrap()
	}
	return nil, r.networkError(ctx, q.op, "waiting to ask again", err)
}

func (q query) tries() uint {
	if q.optional {
		return 1
	}
	return maxTries
}

// jittered returns the pauses before retries: 50-150 ms, then 1.5 times as long each time.
func jittered() backoff.BackOff {
	b := backoff.NewExponentialBackOff()
	b.InitialInterval = 100 * time.Millisecond
	return b
}

// restingPause is the Retry-After of the last error plus the usual pause, because other
// requests wait for the same moment.
type restingPause struct {
	backoff.BackOff
	rest time.Duration
}

func (p *restingPause) NextBackOff() time.Duration { return p.rest + p.BackOff.NextBackOff() }

// askOne sends q to one URL. It tries the accounts in turn while the failure may be the
// account's: a rate limit, a refusal or a missing credential.
func (r *Registry) askOne(ctx context.Context, e *endpoint, q query) (*http.Response, error) {
	if err := e.discoverChallenge(ctx); err != nil {
		return nil, err
	}
	var telling error
	for _, a := range e.inTurn(q.repo) {
		resp, err := r.askAs(ctx, a, q)
		if err == nil && q.accept != nil {
			if err = q.accept(resp); err != nil {
				resp.Body.Close()
				return nil, err
			}
		}
		switch {
		case err == nil:
			e.stick(q.repo, a)
			resp.Body.(*body).from = e
			return resp, nil
		case ctx.Err() != nil:
			return nil, err
		case !errors.Is(err, ErrRateLimited) && !errors.Is(err, ErrDenied) && !errors.Is(err, errNoCredential):
			return nil, err
		}
		if len(e.accounts) > 1 && !errors.Is(err, ErrRateLimited) { // the budget logs rate limits
			r.log.WarnContext(ctx, "account refused", "upstream", r.cfg.Name, "account", a.key, "repository", q.repo, "error", err)
		}
		telling = moreTelling(telling, err)
	}
	return nil, telling
}

// askAs sends q to an account's URL. Redirect targets such as a CDN's signed URLs expire:
// if one refuses without a challenge for a token, q is sent to the registry once more, for
// a new redirect.
func (r *Registry) askAs(ctx context.Context, a *account, q query) (*http.Response, error) {
	for fresh := false; ; fresh = true {
		resp, sent, away, err := r.follow(ctx, a, q)
		if err != nil {
			return nil, err
		}
		status := resp.StatusCode
		if status < 300 {
			return resp, nil
		}
		_, guest := wantsToken(resp) // if so, a new redirect does not help
		if away && !guest && !fresh && (status == 401 || status == 403 || status == 404 || status == 410) {
			drain(resp)
			continue
		}
		failed := r.statusError(q.op, resp, a.shown(sent)...)
		if e := a.endpoint; e.prefix != "" { // clients do not see the prefix
			failed.Message = strings.ReplaceAll(failed.Message, e.prefix, "")
		}
		if away { // the message may quote the signed URL
			failed.Code, failed.Message = "", "from where the registry leads"
			failed.own = false
			return nil, failed.because(errors.New(resp.Request.URL.Host))
		}
		return nil, sent.hint.of(failed)
	}
}

// follow sends q to a's URL, authenticates and follows redirects. away reports whether the
// response comes from another origin. sent is the last authorization for the registry.
func (r *Registry) follow(ctx context.Context, a *account, q query) (resp *http.Response, sent authorization, away bool, err error) {
	if err := a.spent(q.op); err != nil {
		return nil, sent, false, err
	}
	sent, err = a.known(ctx, q)
	if err != nil {
		return nil, sent, false, err
	}
	for renewals := 0; ; renewals++ {
		resp, away, err = r.chase(ctx, a, q, sent)
		if err != nil || renewals == maxRenewals ||
			resp.StatusCode != http.StatusUnauthorized && (away || resp.StatusCode != http.StatusForbidden) {
			if err == nil && !away && resp.StatusCode < 400 && strings.HasPrefix(sent.header, "Basic ") {
				a.loginAccepted(basicCredential(sent.header), q.repo)
			}
			return resp, sent, away, err
		}
		if away {
			if !r.guests.admit(ctx, q, resp) {
				return resp, sent, away, nil
			}
			drain(resp)
			continue
		}
		next, err := a.renew(ctx, q, resp, sent)
		if err != nil {
			resp.Body.Close()
			return nil, sent, false, err
		}
		if next.header == "" {
			if next.hint != (hint{}) {
				sent.hint = next.hint
			}
			return resp, sent, false, nil // there is no better authorization
		}
		drain(resp)
		next.secrets = append(next.secrets, sent.secrets...) // a response may repeat the old or the new ones
		sent = next
	}
}

// spent returns an error if the account's rate limit for op is spent, else nil.
func (a *account) spent(op string) error {
	left := a.budget.left(op)
	if left == 0 {
		return nil
	}
	resting := a.endpoint.registry.fail(op, ErrRateLimited, "not asked: the rate limit is spent")
	resting.RetryAfter = left
	return resting
}

// chase sends q to a's URL and follows redirects itself. It sends the authorization only to
// the URL's own origin, and never after a redirect to another one.
func (r *Registry) chase(ctx context.Context, a *account, q query, shown authorization) (*http.Response, bool, error) {
	e := a.endpoint
	u := e.url(q)
	seen := map[string]bool{}
	away := false
	for {
		seen[u.String()] = true
		req, err := http.NewRequestWithContext(ctx, q.method, u.String(), nil)
		if err != nil {
			return nil, away, r.fail(q.op, ErrInvalid, "not a name that can be asked for")
		}
		if q.header != nil {
			req.Header = q.header.Clone()
		}
		req.Header.Set("Accept-Encoding", "identity") // the bytes are hashed as they come
		switch header := shown.header; {
		case away:
			if header = r.guests.known(u, q); header != "" {
				req.Header.Set("Authorization", header)
			}
		case header != "":
			req.Header.Set("Authorization", header)
		}
		p := purpose{op: q.op, repo: q.repo, path: q.path, optional: q.optional}
		resp, err := r.roundTrip(ctx, p, req)
		if err != nil {
			return nil, away, err
		}
		switch {
		case !away:
			a.budget.note(q.op, resp.StatusCode, resp.Header)
			e.publish()
		case resp.StatusCode == http.StatusTooManyRequests:
			r.honorRetryAfter(ctx, p, u, resp)
		}
		if !isRedirect(resp.StatusCode) {
			return resp, away, nil
		}
		location := resp.Header.Get("Location")
		drain(resp)
		next, wrong := r.redirectTarget(q.op, e.base, u, location, q.raced)
		if wrong != nil {
			return nil, away, wrong
		}
		if len(seen) > maxRedirects || seen[next.String()] {
			return nil, away, r.fail(q.op, ErrInvalid, "redirect loop or more than %d redirects", maxRedirects)
		}
		u = next
		away = away || origin(u) != e.origin
	}
}

func isRedirect(status int) bool {
	switch status {
	case 301, 302, 303, 307, 308:
		return true
	}
	return false
}

// redirectTarget resolves a Location. Its errors never have the target's path or query,
// which may be signed; its host is for the log only. A redirect of an https registry to http
// is followed only if AllowHTTPRedirects is set and the content is verified by digest.
func (r *Registry) redirectTarget(op string, base, from *url.URL, location string, byDigest bool) (*url.URL, *Error) {
	if location == "" {
		return nil, r.fail(op, ErrInvalid, "redirect without a location")
	}
	u, err := from.Parse(location)
	switch {
	case err != nil || !hasHost(u):
		return nil, r.fail(op, ErrInvalid, "redirect to an invalid URL")
	case u.User != nil:
		return nil, r.fail(op, ErrInvalid, "redirect with a user name").because(errors.New("to " + u.Host))
	case u.Scheme == "https", u.Scheme == "http" && (base.Scheme == "http" || byDigest && r.cfg.AllowHTTPRedirects):
		u.Fragment, u.RawFragment = "", ""
		return u, nil
	}
	hint := ""
	if u.Scheme == "http" && byDigest {
		hint = ": to allow content over plain http, set " + r.cfg.key("allow_http_redirects") + ": true"
	}
	return nil, r.fail(op, ErrInvalid, "redirect from %s to %s is not followed%s", base.Scheme, printable(u.Scheme, 16), hint).because(errors.New("to " + u.Host))
}

// drain reads what is left of a short body, so that its connection can be
// used again.
func drain(resp *http.Response) {
	// If reading fails, the transport closes the connection; that is enough.
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, maxErrorBody))
	resp.Body.Close()
}

// validPath reports whether p cannot change another part of the URL. Callers validate names
// by the grammar; this is a second check.
func validPath(p string) bool {
	for s := range strings.SplitSeq(p, "/") {
		if s == "" || s == "." || s == ".." {
			return false
		}
	}
	return strings.IndexFunc(p, func(c rune) bool { return c <= ' ' || c >= 0x7f || c == '\\' }) < 0
}
