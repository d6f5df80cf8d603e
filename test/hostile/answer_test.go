package hostile

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"
	"time"
)

// answer is a registry's response to a request.
type answer struct {
	first  string // bytes before the response
	proto  string
	status int
	header [][2]string
	body   []byte

	framing framing
	length  string        // the value of a wrong Content-Length
	delay   time.Duration // before the response
	cut     int           // bytes of the body after which the connection ends; -1: none
	stall   int           // bytes of the body after which nothing more comes; -1: none
}

// framing says how the end of the body is marked.
type framing int

const (
	byLength framing = iota
	byChunks
	byEnd
	byLie
)

func (a *answer) set(name, value string) {
	a.remove(name)
	a.header = append(a.header, [2]string{name, value})
}

func (a *answer) remove(name string) {
	a.header = slices.DeleteFunc(a.header, func(h [2]string) bool { return strings.EqualFold(h[0], name) })
}

// change makes a part of a response wrong or unusual.
func (a *answer) change(d *dice, r *registry) {
	switch d.n(16) {
	case 0, 1:
		a.status = pick(d, 200, 200, 201, 202, 203, 204, 205, 206, 226, 299, 300, 301, 302, 303, 304, 307, 308, 400, 401, 401, 402, 403, 404, 404,
			405, 406, 408, 410, 412, 413, 416, 418, 421, 425, 426, 429, 451, 499, 500, 501, 502, 503, 504, 507, 511, 520, 599, 600, 999, 0)
	case 2, 3, 4:
		name := pick(d, headerNames()...)
		a.set(name, r.value(d, name))
	case 5:
		name := pick(d, headerNames()...)
		a.header = append(a.header, [2]string{name, r.value(d, name)}, [2]string{name, r.value(d, name)})
	case 6:
		a.remove(pick(d, headerNames()...))
	case 7, 8:
		a.body = r.body(d)
		if d.once(3) { // the list has a next page
			a.set("Link", r.value(d, "Link"))
		}
	case 9:
		a.damage(d)
	case 10:
		a.framing = pick(d, byChunks, byEnd, byLie)
		a.length = pick(d, "-1", "0", "1", "+5", "5, 5", "5, 6", "007", "0x10", "1e3", "4194304", "9223372036854775807", "9223372036854775808", "", " ", fmt.Sprint(len(a.body)-1), fmt.Sprint(len(a.body)+1), d.text(5))
	case 11:
		a.cut = d.n(256) * (1 + d.n(256))
	case 12:
		a.stall = d.n(256) * (1 + d.n(256))
	case 13:
		a.delay = time.Duration(d.n(256)) * time.Second / 4
	case 14:
		a.first = pick(d, "HTTP/1.1 100 Continue\r\n\r\n", "HTTP/1.1 103 Early Hints\r\nLink: </x>; rel=preload\r\n\r\n", strings.Repeat("HTTP/1.1 102 Processing\r\n\r\n", 10), "\r\n", d.text(40))
	case 15:
		a.proto = pick(d, "HTTP/1.0", "HTTP/1.1", "HTTP/0.9", "HTTP/2.0", "http/1.1", "", "ICY", d.text(9))
	}
	if a.status == http.StatusUnauthorized && d.once(2) {
		a.set("WWW-Authenticate", r.value(d, "WWW-Authenticate"))
	}
	if a.status/100 == 3 && d.once(2) {
		a.set("Location", r.value(d, "Location"))
	}
}

// damage changes some bytes of the body.
func (a *answer) damage(d *dice) {
	a.body = bytes.Clone(a.body)
	switch d.n(5) {
	case 0:
		a.body = a.body[:d.n(256)*len(a.body)/256]
	case 1:
		a.body = append(a.body, a.body...)
	case 2:
		a.body = append(a.body, d.text(20)...)
	case 3:
		for range 1 + d.n(4) {
			if len(a.body) > 0 {
				a.body[(d.n(256)<<8+d.n(256))%len(a.body)] = byte(d.n(256))
			}
		}
	case 4:
		var packed bytes.Buffer
		w := gzip.NewWriter(&packed)
		_, _ = w.Write(a.body) // into memory
		_ = w.Close()
		a.body = packed.Bytes()
		if d.once(2) {
			a.set("Content-Encoding", "gzip")
		}
	}
}

// send writes a response. It returns false if the connection must end.
func (a *answer) send(c net.Conn, method string) bool {
	time.Sleep(a.delay)
	head := []byte(a.first)
	head = fmt.Appendf(head, "%s %03d %s\r\n", a.proto, a.status, http.StatusText(a.status))
	for _, h := range a.header {
		head = fmt.Appendf(head, "%s: %s\r\n", h[0], h[1])
	}
	body, goesOn := a.body, true
	switch a.framing {
	case byLength:
		head = fmt.Appendf(head, "Content-Length: %d\r\n", len(body))
	case byLie:
		head = fmt.Appendf(head, "Content-Length: %s\r\n", a.length)
	case byChunks:
		head = append(head, "Transfer-Encoding: chunked\r\n"...)
		body = fmt.Appendf(nil, "%x\r\n%s\r\n0\r\n\r\n", len(body), body)
		if len(a.body) == 0 {
			body = []byte("0\r\n\r\n")
		}
	case byEnd:
		goesOn = false
	}
	if method == http.MethodHead && a.framing != byLie || a.status == http.StatusNoContent || a.status == http.StatusNotModified {
		body = nil
	}
	if a.cut >= 0 && a.cut < len(body) {
		body, goesOn = body[:a.cut], false
	}
	silent := a.stall >= 0 && a.stall < len(body)
	if silent {
		body = body[:a.stall]
	}
	if _, err := c.Write(append(append(head, "\r\n"...), body...)); err != nil {
		return false
	}
	if silent {
		_, _ = c.Read(make([]byte, 1)) // until the mirror closes the connection
		return false
	}
	return goesOn
}
