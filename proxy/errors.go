package proxy

import (
	"context"
	"encoding/json"
	"errors"
	"math"
	"net/http"
	"strconv"
	"time"

	"github.com/distribution/distribution/v3/registry/api/errcode"

	"github.com/cachalot-registry/cachalot/bounds"
	"github.com/cachalot-registry/cachalot/storage"
	"github.com/cachalot-registry/cachalot/storage/download"
	"github.com/cachalot-registry/cachalot/upstream"
)

// StatusClientGone is logged if the client left before its answer (nginx's 499);
// nothing is sent.
const StatusClientGone = 499

// defaultRetryAfter is the Retry-After of a rate limit if the upstream sent none.
const defaultRetryAfter = time.Minute

// answer is the response for an error.
type answer struct {
	status     int
	code       errcode.ErrorCode
	detail     string
	result     result
	retryAfter time.Duration
}

// unknown returns the error code for missing content, by kind.
func unknown(kind upstream.Kind) errcode.ErrorCode {
	switch kind {
	case upstream.KindManifest:
		return errcode.ErrorCodeManifestUnknown
	case upstream.KindBlob:
		return errcode.ErrorCodeBlobUnknown
	default:
		return errcode.ErrorCodeNameUnknown
	}
}

// answerTo maps an error to its answer: see the table in docs/architecture.md. A client that
// can use another registry must do so at once, and no answer may ask for credentials.
func answerTo(err error, kind upstream.Kind) answer {
	var refused *refusal
	var asked *upstream.Error
	errors.As(err, &asked)
	_, isBusy := busy(err)
	a := answer{status: http.StatusBadGateway, code: errcode.ErrorCodeUnavailable, detail: publicText(err), result: resultError}
	switch {
	case errors.As(err, &refused):
		return answer{status: refused.status, code: refused.code, detail: refused.detail, result: refused.result}
	case asked != nil && asked.Unreachable(): // before the other cases, which may match too
		return a
	case errors.Is(err, upstream.ErrNotFound):
		a.status, a.code, a.result = http.StatusNotFound, unknown(kind), resultMiss
	case errors.Is(err, upstream.ErrDenied):
		// Not 401 or 403: the client would send us its credentials.
		a.status, a.code, a.result = http.StatusNotFound, unknown(kind), resultDenied
	case errors.Is(err, upstream.ErrRateLimited):
		// Not 429: containerd would ask fifteen times.
		a.status, a.code, a.retryAfter = http.StatusServiceUnavailable, errcode.ErrorCodeTooManyRequests, defaultRetryAfter
		if asked != nil && asked.RetryAfter > 0 {
			a.retryAfter = asked.RetryAfter
		}
	case isBusy:
		a.status, a.code, a.retryAfter = http.StatusServiceUnavailable, errcode.ErrorCodeTooManyRequests, bounds.RetryAfter
	case errors.Is(err, upstream.ErrTimeout):
		a.status = http.StatusGatewayTimeout
	case errors.Is(err, upstream.ErrUnavailable), errors.Is(err, upstream.ErrInvalid),
		errors.Is(err, upstream.ErrUnsupported), errors.Is(err, storage.ErrDigest), errors.Is(err, download.ErrChanged):
	case errors.Is(err, storage.ErrClosed), errors.Is(err, storage.ErrUnlinked): // it was evicted again and again, or too many places join its download
		a.status = http.StatusServiceUnavailable
	case errors.Is(err, context.Canceled):
		a.status = StatusClientGone
	default:
		a.status, a.code = http.StatusInternalServerError, errcode.ErrorCodeUnknown
	}
	if a.result == resultError && a.retryAfter == 0 && asked != nil && errors.Is(err, upstream.ErrUnavailable) {
		a.retryAfter = asked.RetryAfter
	}
	var negative *negative
	if errors.As(err, &negative) && a.result == resultMiss {
		a.result = resultNegative
	}
	return a
}

// publicText returns an error's text for clients. The whole text, with addresses and paths,
// goes to the log only.
func publicText(err error) string {
	if e, ok := errors.AsType[interface {
		error
		Public() string
	}](err); ok {
		return e.Public()
	}
	for _, known := range []error{
		errBusy, errNames, bounds.ErrNoMemory,
		upstream.ErrNotFound, upstream.ErrDenied, upstream.ErrRateLimited, upstream.ErrTimeout, upstream.ErrUnavailable,
		upstream.ErrUnsupported, upstream.ErrInvalid, upstream.ErrSigned, storage.ErrDigest, download.ErrChanged, storage.ErrClosed, storage.ErrUnlinked,
	} {
		if errors.Is(err, known) {
			return known.Error()
		}
	}
	return "internal error; the mirror's log says more"
}

// told is an error with a text for clients. errors.Is finds is, and not cause.
type told struct {
	is    error
	words string
	cause error // for the log; may be nil
}

func (e *told) Error() string {
	if e.cause == nil {
		return e.Public()
	}
	return e.Public() + ": " + e.cause.Error()
}

// Public is what a client is told.
func (e *told) Public() string { return e.is.Error() + ": " + e.words }
func (e *told) Unwrap() error  { return e.is }

// writeError is the one place that writes an error to a client.
func (p *Proxy) writeError(w *response, r *http.Request, err error) {
	a := answerTo(err, w.target.kind)
	w.err = err
	if what, ok := busy(err); ok {
		p.metrics.busy.WithLabelValues(what).Inc()
	}
	switch {
	case a.status != StatusClientGone:
		w.result = a.result
	case w.result == resultError: // the initial value: the client left before there was a result
		w.result = resultMiss
	}
	if w.wrote || a.status == StatusClientGone {
		// The body has begun, or the client is gone: only closing the connection is left.
		if !w.wrote {
			w.status = StatusClientGone
		}
		panic(http.ErrAbortHandler)
	}
	w.digest = ""
	// Users who ask for help have the client's error text, and rarely its headers.
	body, merr := json.Marshal(errcode.Errors{a.code.WithDetail(a.detail + " (request " + w.id + ")")})
	if merr != nil { // strings always marshal
		body = []byte(`{"errors":[]}`)
	}
	h := w.Header()
	for _, k := range []string{"Content-Length", "Docker-Content-Digest", "Etag", "Accept-Ranges"} {
		h.Del(k)
	}
	h.Set("Content-Type", "application/json; charset=utf-8")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Content-Length", strconv.Itoa(len(body)))
	w.setCacheStatus()
	if a.retryAfter > 0 {
		h.Set("Retry-After", strconv.Itoa(int(math.Ceil(a.retryAfter.Seconds()))))
	}
	w.WriteHeader(a.status)
	if r.Method != http.MethodHead {
		_, _ = w.Write(body) // a client that has left is no news
	}
}
