package server

import (
	"bytes"
	"fmt"
	"io"
)

// maxHeadLines bounds the lines of a request's head: browsers send some twenty, clients of
// registries ten. Each field is in memory for itself, a hundred bytes for one of three:
// a head of maxHeader bytes would take half a megabyte.
const maxHeadLines = 200

// head counts the lines of a request's head (RFC 9112 section 2.1) as it comes.
type head struct {
	lines int
	text  bool // the line that has begun has something in it
	begun bool // a line before it had
	ended bool // what comes is no head
}

// exceeds takes what has come, and reports whether the head has too many lines.
func (h *head) exceeds(p []byte) bool {
	for !h.ended {
		line, rest, whole := bytes.Cut(p, []byte("\n"))
		h.text = h.text || len(bytes.TrimSuffix(line, []byte("\r"))) > 0
		if !whole {
			return false
		}
		h.ended = !h.text && h.begun
		if h.lines++; h.lines > maxHeadLines {
			return true
		}
		h.begun, h.text, p = h.begun || h.text, false, rest
	}
	return false
}

// refuseHead answers a request whose head has too many lines. The error ends its
// connection, and net/http says no more.
func refuseHead(w io.Writer) error {
	const words = "the request has too many header fields\n"
	_, _ = fmt.Fprintf(w, "HTTP/1.1 431 Request Header Fields Too Large\r\nContent-Type: text/plain\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s", len(words), words)
	return io.EOF
}
