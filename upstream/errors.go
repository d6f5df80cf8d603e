package upstream

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"
	"unicode"
)

// A failed call matches one of these by errors.Is. A call that ended because the
// caller's context was cancelled matches context.Canceled and none of these.
var (
	// ErrNotFound: upstream answered 404 or 410. Only if [SaysNo] did the registry itself
	// say so.
	ErrNotFound = errors.New("not found upstream")
	// ErrDenied: upstream or its token server refused, after authentication.
	ErrDenied = errors.New("denied by upstream")
	// ErrRateLimited: upstream or its token server answered 429.
	ErrRateLimited = errors.New("rate limited by upstream")
	// ErrUnavailable: no answer, a 5xx, a token server that is down, or a request that was
	// not sent, for example because a breaker is open.
	ErrUnavailable = errors.New("upstream unavailable")
	// ErrTimeout is an ErrUnavailable caused by a deadline; it matches both.
	ErrTimeout = fmt.Errorf("upstream timed out: %w", ErrUnavailable)
	// ErrUnsupported: upstream does not support this method.
	ErrUnsupported = errors.New("unsupported by upstream")
	// ErrInvalid: upstream's answer is invalid or too large, the requested name is invalid,
	// or it leads to an address that is not allowed.
	ErrInvalid = errors.New("invalid answer from upstream")
)

// errEgress: the address that a name or a redirect leads to is not allowed.
var errEgress = fmt.Errorf("%w", ErrInvalid)

// errNoCredential: an account's file, program or cloud gave none.
var errNoCredential = fmt.Errorf("no credential: %w", ErrUnavailable)

// Error says what an upstream answered, or why it did not. All but its cause may be shown
// to clients.
type Error struct {
	Upstream string // the registry's name
	Op       string // the request, as in the op label of the metrics
	Status   int    // the HTTP status; 0 when there was no answer
	Code     string // the OCI error code upstream sent, if any
	Message  string // upstream's text, or ours; short and printable
	// RetryAfter is how long upstream asked to wait; 0 when it did not say.
	RetryAfter time.Duration
	Err        error // one of the sentinels, or wraps it and nothing else

	// cause is the error of the network, a name server, a file or a program, with the
	// host. It is only for the log.
	cause error
	// unreached: there was no answer, for whatever reason.
	unreached bool
	// unlisted: clients choose the registry's name.
	unlisted bool
	own      bool // from the registry itself, with an OCI error code about the content
}

// Error is for the log.
func (e *Error) Error() string {
	if e.cause == nil {
		return e.text()
	}
	return e.text() + ": " + e.cause.Error()
}

// Public returns the text for clients. It has no address, no resolver and no path, and does
// not say whether a port is open or a name resolves. For an unlisted registry it does not
// even say why it could not be reached.
func (e *Error) Public() string {
	switch {
	case e.Unreachable():
		return e.Upstream + ": the registry does not answer, or is not at a public address; the mirror's log says which"
	case e.cause != nil:
		return e.text() + "; the mirror's log says why"
	}
	return e.text()
}

// Unreachable reports whether the registry is unlisted and could not be reached. All such
// failures must look alike, so that a client cannot find out about names, addresses and
// ports that only the mirror reaches.
func (e *Error) Unreachable() bool { return e.unlisted && e.unreached }

func (e *Error) text() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s: %s: %v", e.Upstream, e.Op, e.Err)
	if e.Status != 0 {
		fmt.Fprintf(&b, " (status %d)", e.Status)
	}
	for _, s := range []string{e.Code, e.Message} {
		if s != "" {
			b.WriteString(": " + s)
		}
	}
	return b.String()
}

func (e *Error) Unwrap() []error {
	if e.cause == nil {
		return []error{e.Err}
	}
	return []error{e.Err, e.cause}
}

// because sets the cause of e, and returns e.
func (e *Error) because(cause error) *Error {
	e.cause = cause
	return e
}

// SaysNo reports whether the registry itself said that it does not have the requested
// content: 404 or 410 in the error format of the distribution specification. An error page
// of a proxy in front of it, the response of a redirect target and a refused login do not
// say so: they are outages.
func SaysNo(err error) bool {
	e, ok := errors.AsType[*Error](err)
	return ok && e.own && errors.Is(e, ErrNotFound)
}

// transient reports whether a request to another URL, or to the same one a moment later,
// may succeed.
func transient(err error) bool { return errors.Is(err, ErrUnavailable) }

// statusOf returns the HTTP status of err, 0 when there is none.
func statusOf(err error) int {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Status
	}
	return 0
}

// restOf returns the RetryAfter of err, 0 when there is none.
func restOf(err error) time.Duration {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.RetryAfter
	}
	return 0
}

// rank orders failures by how much they tell the caller. A 404 of one URL says less than
// the failure of another, which may have the content.
func rank(err error) int {
	switch {
	case errors.Is(err, ErrRateLimited):
		return 6
	case errors.Is(err, errNotAsked):
		return 3
	case errors.Is(err, ErrTimeout):
		return 5
	case errors.Is(err, ErrUnavailable):
		return 4
	case errors.Is(err, ErrInvalid), errors.Is(err, ErrUnsupported):
		return 2
	case errors.Is(err, ErrDenied):
		return 1
	default:
		return 0
	}
}

func (r *Registry) fail(op string, sentinel error, format string, args ...any) *Error {
	return &Error{Upstream: r.cfg.Name, Op: op, Message: fmt.Sprintf(format, args...), Err: sentinel, unlisted: r.cfg.Unlisted}
}

// unreached returns the error of a request that got no answer.
func (r *Registry) unreached(op string, sentinel, cause error, format string, args ...any) *Error {
	e := r.fail(op, sentinel, format, args...).because(cause)
	e.unreached = true
	return e
}

// networkError maps an error of the transport or of a body. ctx is the caller's: its
// cancellation is not upstream's failure, but its deadline is a timeout.
func (r *Registry) networkError(ctx context.Context, op, doing string, err error) error {
	if _, ok := errors.AsType[*Error](err); ok {
		return err
	}
	sentinel, cause := networkFailure(ctx, err)
	return r.fail(op, sentinel, "%s", doing).because(cause)
}

// networkFailure returns the sentinel for err, and its cause.
func networkFailure(ctx context.Context, err error) (sentinel, cause error) {
	var nerr net.Error
	switch {
	case errors.Is(ctx.Err(), context.Canceled):
		return context.Canceled, nil
	case ctx.Err() != nil:
		return ErrTimeout, context.DeadlineExceeded
	case errors.Is(err, errSilent), errors.Is(err, errTrickle), errors.Is(err, errTooSlow),
		errors.As(err, &nerr) && nerr.Timeout():
		return ErrTimeout, err
	}
	return ErrUnavailable, err
}

// unquoted removes from the transport's error what that quotes of a malformed response,
// which may repeat the credential.
func unquoted(err error) error {
	var network net.Error
	if _, ours := errors.AsType[*refusal](err); ours || errors.As(err, &network) {
		return err
	}
	if told, _, quotes := strings.Cut(err.Error(), `"`); quotes {
		return errors.New(strings.TrimRight(told, " :"))
	}
	return err
}

// maxErrorBody bounds what is read of an error's body: an OCI error is a few
// hundred bytes, and a proxy's error page is of no use.
const maxErrorBody = 64 << 10

// statusError turns an unsuccessful response into an Error and consumes its body. Secrets
// that were sent are removed from the message.
func (r *Registry) statusError(op string, resp *http.Response, secrets ...string) *Error {
	e := &Error{Upstream: r.cfg.Name, Op: op, Status: resp.StatusCode, unlisted: r.cfg.Unlisted}
	e.Code, e.Message = ociError(resp)
	e.own = ofContent(e.Code)
	for _, s := range secrets {
		if s != "" {
			e.Code = strings.ReplaceAll(e.Code, s, "[redacted]")
			e.Message = strings.ReplaceAll(e.Message, s, "[redacted]")
		}
	}
	e.Code, e.Message = printable(e.Code, 64), printable(e.Message, 256)
	switch s := resp.StatusCode; {
	case s == http.StatusNotFound || s == http.StatusGone:
		e.Err = ErrNotFound
	case s == http.StatusUnauthorized || s == http.StatusForbidden:
		e.Err = ErrDenied
	case s == http.StatusTooManyRequests:
		e.Err = ErrRateLimited
		e.RetryAfter = parseRetryAfter(resp.Header, time.Now())
	case s == http.StatusMethodNotAllowed || s == http.StatusNotImplemented:
		e.Err = ErrUnsupported
	case s == http.StatusRequestTimeout || s == http.StatusGatewayTimeout:
		e.Err = ErrTimeout
	case s >= 500:
		e.Err = ErrUnavailable
		e.RetryAfter = min(parseRetryAfter(resp.Header, time.Now()), maxRest)
	default:
		e.Err = ErrInvalid
	}
	return e
}

// ofContent reports whether an OCI error code may be about the requested content. The
// other codes say why the registry could not look for it.
func ofContent(code string) bool {
	switch code {
	case "", "UNAUTHORIZED", "DENIED", "UNSUPPORTED", "TOOMANYREQUESTS", "UNAVAILABLE", "UNKNOWN":
		return false
	}
	return true
}

// ociError reads the first error of an OCI error body and drains it, so that
// the connection can be used again (distribution-spec, Error Codes).
func ociError(resp *http.Response) (code, message string) {
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxErrorBody))
	if err != nil {
		return "", ""
	}
	var wire struct {
		Errors []struct {
			Code    string `json:"code"`
			Message string `json:"message"`
		} `json:"errors"`
		// Token servers (Docker Hub's, Google's) use one of these.
		Details string `json:"details"`
		Message string `json:"message"`
	}
	if json.Unmarshal(b, &wire) != nil {
		return "", ""
	}
	if len(wire.Errors) > 0 {
		return wire.Errors[0].Code, wire.Errors[0].Message
	}
	if wire.Details != "" {
		return "", wire.Details
	}
	return "", wire.Message
}

// printable cuts s to limit bytes, and removes what a terminal or a log would
// interpret.
func printable(s string, limit int) string {
	s = strings.Map(func(c rune) rune {
		switch {
		case unicode.IsSpace(c):
			return ' '
		case c == unicode.ReplacementChar || !unicode.IsPrint(c):
			return -1
		}
		return c
	}, s)
	if len(s) <= limit {
		return s
	}
	return strings.ToValidUTF8(s[:limit], "") + "..."
}
