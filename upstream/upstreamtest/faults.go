package upstreamtest

import (
	"bytes"
	"compress/gzip"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
)

// Fault is one way to go wrong. Several may be given to Registry.Fault; they
// apply in order.
type Fault func(*exchange)

// CutAfter breaks the connection after n bytes of the body.
func CutAfter(n int) Fault { return func(x *exchange) { x.cutAt = n } }

// ResetAfter is CutAfter by a TCP reset.
func ResetAfter(n int) Fault { return func(x *exchange) { x.cutAt, x.reset = n, true } }

// TrickleAfter sends n bytes of the body, then one byte after each pause.
func TrickleAfter(n int, pause time.Duration) Fault {
	return func(x *exchange) { x.stallAt, x.drip = n, pause }
}

// StallAfter sends n bytes of the body and the rest once release is closed.
func StallAfter(n int, release <-chan struct{}) Fault {
	return func(x *exchange) { x.stallAt, x.release = n, release }
}

// Throttle sends the body at so many bytes a second.
func Throttle(rate int) Fault { return func(x *exchange) { x.rate = rate } }

// Pause answers once release is closed.
func Pause(release <-chan struct{}) Fault {
	return func(x *exchange) { x.pauses = append(x.pauses, release) }
}

// Delay answers after d.
func Delay(d time.Duration) Fault { return func(x *exchange) { x.delay = d } }

// Arrived sends to ch when the request has arrived, before any Pause.
func Arrived(ch chan<- struct{}) Fault { return func(x *exchange) { x.arrived = ch } }

// BlackHole never answers, until the client or the test ends.
func BlackHole() Fault { return Pause(nil) }

// WrongBytes changes a byte in the middle of the body, which keeps its length.
func WrongBytes() Fault {
	return func(x *exchange) {
		x.content = bytes.Clone(x.content)
		if n := len(x.content); n > 0 {
			x.content[x.start+(n-x.start)/2] ^= 0xff
		}
	}
}

// IgnoreRange answers 200 with everything.
func IgnoreRange() Fault {
	return func(x *exchange) {
		if x.status == http.StatusPartialContent || x.status == http.StatusRequestedRangeNotSatisfiable {
			x.status, x.start, x.end = http.StatusOK, 0, len(x.content)
			x.header.Del("Content-Range")
		}
	}
}

// WrongContentRange sends the right bytes under another Content-Range; ""
// leaves the header out.
func WrongContentRange(value string) Fault {
	return func(x *exchange) {
		if x.status == http.StatusPartialContent {
			set(x.header, "Content-Range", value)
		}
	}
}

// ShiftedRange sends and announces a range that begins by bytes later.
func ShiftedRange(by int) Fault {
	return func(x *exchange) {
		if x.status == http.StatusPartialContent {
			x.start = min(x.start+by, x.end-1)
			x.sayRange()
		}
	}
}

// OfRanges applies a fault only to requests with a Range.
func OfRanges(f Fault) Fault {
	return func(x *exchange) {
		if x.record.Header.Get("Range") != "" {
			f(x)
		}
	}
}

// RangeNotSatisfiable answers 416 to a request with a Range.
func RangeNotSatisfiable() Fault {
	return func(x *exchange) {
		if x.status == http.StatusPartialContent {
			Status(http.StatusRequestedRangeNotSatisfiable)(x)
		}
	}
}

// ChangedLength makes the content by bytes longer, or shorter if negative, and
// its announced length agrees.
func ChangedLength(by int) Fault {
	return func(x *exchange) {
		if by < 0 {
			x.content = x.content[:max(len(x.content)+by, x.start)]
		} else {
			x.content = append(bytes.Clone(x.content), make([]byte, by)...)
		}
		x.end = len(x.content)
		if x.status == http.StatusPartialContent {
			x.sayRange()
		}
	}
}

// NoLength sends the body without a Content-Length, chunked.
func NoLength() Fault { return func(x *exchange) { x.chunked = true } }

// OpenEnd sends the body with neither length nor chunks, as HTTP/1.0 does: it ends with the
// connection. CutAfter then looks like a normal end.
func OpenEnd() Fault { return func(x *exchange) { x.openEnd = true } }

// Gzip compresses the body and says so, though no request asks for it.
func Gzip() Fault {
	return func(x *exchange) {
		var b bytes.Buffer
		w := gzip.NewWriter(&b)
		_, _ = w.Write(x.content[x.start:x.end]) // a bytes.Buffer takes everything
		_ = w.Close()
		x.content, x.start, x.end = b.Bytes(), 0, b.Len()
		x.header.Set("Content-Encoding", "gzip")
	}
}

// Status answers a status with an OCI error body and the given header
// key-value pairs, such as 429 with "Retry-After", "30".
func Status(code int, header ...string) Fault {
	return StatusError(code, ociCode(code), "scripted "+strconv.Itoa(code), header...)
}

// StatusError is Status with a given OCI error code and message.
func StatusError(code int, oci, message string, header ...string) Fault {
	return func(x *exchange) {
		x.header = http.Header{}
		x.fail(code, oci, message)
		for i := 0; i+1 < len(header); i += 2 {
			x.header.Add(header[i], header[i+1])
		}
	}
}

// Header sets a header of the answer; "" leaves it out.
func Header(key, value string) Fault {
	return func(x *exchange) { set(x.header, key, value) }
}

// NoDigest leaves Docker-Content-Digest out.
func NoDigest() Fault { return Header("Docker-Content-Digest", "") }

// LyingDigest says another Docker-Content-Digest.
func LyingDigest(d digest.Digest) Fault { return Header("Docker-Content-Digest", d.String()) }

// DigestBy says the Docker-Content-Digest by another algorithm, as the distribution
// specification allows.
func DigestBy(a digest.Algorithm) Fault {
	return func(x *exchange) { x.header.Set("Docker-Content-Digest", a.FromBytes(x.content).String()) }
}

// Body answers 200 with any body.
func Body(contentType string, body []byte) Fault {
	return func(x *exchange) {
		x.status, x.content, x.start, x.end = http.StatusOK, body, 0, len(body)
		set(x.header, "Content-Type", contentType)
	}
}

// StatusOf changes the status of the answer and nothing else.
func StatusOf(code int) Fault { return func(x *exchange) { x.status = code } }

// Huge answers with n bytes of JSON, such as a manifest far too large.
func Huge(n int) Fault {
	return func(x *exchange) {
		const around = len(`{"mediaType":""}`)
		Body(x.header.Get("Content-Type"), []byte(`{"mediaType":"`+strings.Repeat("a", n-around)+`"}`))(x)
	}
}

// Endless sends JSON without length or end, such as a token answer.
func Endless() Fault {
	return func(x *exchange) {
		Body("application/json", bytes.Repeat([]byte(`{"token":"`+string(bytes.Repeat([]byte("a"), 1014))), 64))(x)
		x.chunked, x.endless = true, true
	}
}

// Redirect answers 307 to any location.
func Redirect(location string) Fault {
	return func(x *exchange) {
		x.status, x.content, x.start, x.end = http.StatusTemporaryRedirect, nil, 0, 0
		x.header.Set("Location", location)
	}
}

// RedirectTo answers 307 to the same path and query at another base URL.
func RedirectTo(base string) Fault {
	return func(x *exchange) { Redirect(base + x.request.URL.RequestURI())(x) }
}

// RedirectLoop answers 307 to the same URL.
func RedirectLoop() Fault {
	return func(x *exchange) { Redirect(x.request.URL.RequestURI())(x) }
}

// RedirectEndless answers 307 to a URL that is new each time.
func RedirectEndless() Fault {
	return func(x *exchange) { Redirect(x.request.URL.RequestURI() + "?")(x) }
}

// RedirectToCDN answers 307 to the CDN, as Options.CDN does for all blobs.
func RedirectToCDN() Fault {
	return func(x *exchange) { x.registry.toCDN(x) }
}

func set(h http.Header, key, value string) {
	if value == "" {
		h.Del(key)
		return
	}
	h.Set(key, value)
}

func ociCode(status int) string {
	switch status {
	case http.StatusUnauthorized:
		return "UNAUTHORIZED"
	case http.StatusForbidden:
		return "DENIED"
	case http.StatusNotFound:
		return "NOT_FOUND"
	case http.StatusTooManyRequests:
		return "TOOMANYREQUESTS"
	}
	return ""
}
