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

// StatusClientGone is logged where the client left before its answer (nginx's
// 499); nothing is sent.
const StatusClientGone = 499

// defaultRetryAfter is asked of clients where the upstream did not say.
const defaultRetryAfter = time.Minute

// answer is what an error becomes on the wire.
type answer struct {
	status     int
	code       errcode.ErrorCode
	detail     string
	result     result
	retryAfter time.Duration
}

// unknown is the code for content that is not there, by kind.
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

// answerTo maps an error to the table in docs/architecture.md: a client that can fall back
// must do so at once, and none may be asked for credentials.
func answerTo(err error, kind upstream.Kind) answer {
	var refused *refusal
	var asked *upstream.Error
	errors.As(err, &asked)
	_, isBusy := busy(err)
	a := answer{status: http.StatusBadGateway, code: errcode.ErrorCodeUnavailable, detail: publicText(err), result: resultError}
	switch {
	case errors.As(err, &refused):
		return answer{status: refused.status, code: refused.code, detail: refused.detail, result: refused.result}
	case asked != nil && asked.Unreachable(): // whatever else it is
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
	case errors.Is(err, storage.ErrClosed), errors.Is(err, storage.ErrUnlinked): // it came and went, or thousands join it
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

// publicText is what a client is told of an error: the whole of it, with addresses, paths
// and what else is of no concern to clients, is for the log.
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

// told is an error with words for clients. It is what is says, and nothing of its cause.
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
	case w.result == resultError: // nobody's: it had only not been answered yet
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
	// Who asks for help has the client's words, and rarely its headers.
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
