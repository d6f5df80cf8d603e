package upstreamtest

import (
	"crypto/tls"
	"fmt"
	"maps"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
)

// exchange is a request and the answer planned for it, which faults change
// before it is sent.
type exchange struct {
	registry *Registry
	request  *http.Request
	record   *Request
	digest   digest.Digest // the bytes sent are counted for it

	status     int
	header     http.Header
	content    []byte
	start, end int // the part of content to send
	chunked    bool
	endless    bool
	openEnd    bool // neither length nor chunks: the body ends with the connection

	arrived chan<- struct{}
	pauses  []<-chan struct{} // waited for in turn; nil: without end
	delay   time.Duration
	cutAt   int  // body bytes before the connection breaks; -1: it does not
	reset   bool // it breaks by RST
	stallAt int
	release <-chan struct{}
	rate    int           // bytes a second; 0: any
	drip    time.Duration // between the bytes from stallAt on; 0: they come at once
}

// begin records a request.
func (r *Registry) begin(req *http.Request, q *Request) *exchange {
	r.arrive(q)
	return &exchange{registry: r, request: req, record: q, header: http.Header{}, cutAt: -1, stallAt: -1}
}

// ok answers 200 with a body.
func (x *exchange) ok(contentType string, body []byte) {
	x.status, x.content, x.start, x.end = http.StatusOK, body, 0, len(body)
	x.header.Set("Content-Type", contentType)
}

// fail answers an OCI error.
func (x *exchange) fail(status int, code, message string) {
	x.ok("application/json", encode(map[string]any{"errors": []map[string]string{{"code": code, "message": message}}}))
	x.status = status
}

// serve answers with content, or the requested part of a blob.
func (x *exchange) serve(c Content, ranges bool) {
	x.digest = c.Digest
	x.ok(c.MediaType, c.Bytes)
	x.header.Set("Docker-Content-Digest", c.Digest.String())
	if !ranges {
		return
	}
	x.header.Set("Content-Type", "application/octet-stream")
	x.header.Set("Accept-Ranges", "bytes")
	span, ok := strings.CutPrefix(x.record.Header.Get("Range"), "bytes=")
	if !ok || x.record.Method == http.MethodHead {
		return
	}
	first, last, _ := strings.Cut(span, "-")
	start, err := strconv.Atoi(first)
	end := len(c.Bytes)
	if n, err := strconv.Atoi(last); err == nil {
		end = min(n+1, end)
	}
	if err != nil || start >= end {
		x.fail(http.StatusRequestedRangeNotSatisfiable, "", "no such range")
		x.header.Set("Content-Range", fmt.Sprintf("bytes */%d", len(c.Bytes)))
		return
	}
	x.status, x.start, x.end = http.StatusPartialContent, start, end
	x.sayRange()
}

func (x *exchange) sayRange() {
	x.header.Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", x.start, x.end-1, len(x.content)))
}

// finish applies the faults and sends the result.
func (x *exchange) finish(w http.ResponseWriter, unauthorized bool) {
	r := x.registry
	for _, f := range r.faultsFor(x.record, unauthorized) {
		f(x)
	}
	if x.arrived != nil {
		select {
		case x.arrived <- struct{}{}:
		case <-r.ended:
		}
	}
	for _, p := range x.pauses {
		x.wait(p)
	}
	if x.delay > 0 {
		x.pause(x.delay)
	}
	body := x.content[x.start:x.end]
	maps.Copy(w.Header(), x.header)
	switch {
	case x.openEnd:
		w.Header().Set("Transfer-Encoding", "identity") // for net/http: neither length nor chunks
	case !x.chunked:
		w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	}
	r.answered(x.record, x.status)
	w.WriteHeader(x.status)
	if x.record.Method == http.MethodHead {
		return
	}
	if x.chunked {
		x.flush(w)
	}
	for at := 0; ; {
		next := len(body)
		for _, stop := range []int{x.cutAt, x.stallAt} {
			if stop >= at && stop < next {
				next = stop
			}
		}
		x.write(w, body[at:next])
		at = next
		switch {
		case at == x.cutAt:
			x.flush(w)
			if x.reset {
				resetConnection(w)
			}
			if x.openEnd { // which looks like a normal end
				return
			}
			panic(http.ErrAbortHandler)
		case at == x.stallAt && x.drip > 0:
			x.flush(w)
			for ; at < len(body); at++ {
				x.pause(x.drip)
				x.write(w, body[at:at+1])
				x.flush(w)
			}
			return
		case at == x.stallAt:
			x.flush(w)
			x.stallAt = -1
			x.wait(x.release)
		case at == len(body) && x.endless:
			at = 0
		case at == len(body):
			return
		}
	}
}

// wait until release is closed, the client leaves or the test ends; in the
// latter cases the exchange is over.
func (x *exchange) wait(release <-chan struct{}) {
	select {
	case <-release:
	case <-x.request.Context().Done():
		panic(http.ErrAbortHandler)
	case <-x.registry.ended:
		panic(http.ErrAbortHandler)
	}
}

// pause is wait for a time.
func (x *exchange) pause(d time.Duration) {
	passed := make(chan struct{})
	defer time.AfterFunc(d, func() { close(passed) }).Stop()
	x.wait(passed)
}

func (x *exchange) flush(w http.ResponseWriter) {
	_ = http.NewResponseController(w).Flush() // a client that left is noticed below
}

// resetConnection ends a connection by RST: data in transit is lost, and the other side's read
// fails (RFC 9293 section 3.10.7.4).
func resetConnection(w http.ResponseWriter) {
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return // HTTP/2, or ended already
	}
	raw := conn
	for {
		switch c := raw.(type) {
		case *tls.Conn:
			raw = c.NetConn()
			continue
		case countedConn:
			raw = c.Conn
			continue
		case *net.TCPConn:
			_ = c.SetLinger(0) // what fails here fails the test that waits for a reset
		case *memoryConn:
			c.Reset()
		}
		_ = raw.Close()
		return
	}
}

// write sends p in pieces and counts each before it can be read.
func (x *exchange) write(w http.ResponseWriter, p []byte) {
	for len(p) > 0 {
		piece := p[:min(len(p), 32<<10)]
		x.count(len(piece))
		n, err := w.Write(piece)
		x.count(n - len(piece))
		if err != nil {
			panic(http.ErrAbortHandler)
		}
		p = p[n:]
		if x.rate > 0 {
			x.pause(time.Duration(n) * time.Second / time.Duration(x.rate))
		}
	}
}

func (x *exchange) count(n int) {
	d := x.digest
	if x.status >= 300 {
		d = "" // an error's body
	}
	x.registry.count(x.record, d, n)
}
