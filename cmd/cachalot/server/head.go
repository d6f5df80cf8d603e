package server

import (
	"bytes"
	"fmt"
	"io"
)

// maxHeadLines bounds the lines of a request's head: browsers send some twenty, clients of
// registries ten. Each field takes memory of its own, a hundred bytes for a field of three:
// without this bound, a head of maxHeader bytes would take half a megabyte.
const maxHeadLines = 200

// head counts the lines of a request's head (RFC 9112 section 2.1) as they are read.
type head struct {
	lines int
	text  bool // the current line is not empty
	begun bool // an earlier line was not empty
	ended bool // the head is complete: what follows is no part of it
}

// exceeds counts the lines in the bytes that were read, and reports whether the head has too
// many.
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

// refuseHead sends 431 for a request whose head has too many lines. Its error ends the
// connection, and net/http sends nothing more.
func refuseHead(w io.Writer) error {
	const words = "the request has too many header fields\n"
	_, _ = fmt.Fprintf(w, "HTTP/1.1 431 Request Header Fields Too Large\r\nContent-Type: text/plain\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s", len(words), words)
	return io.EOF
}
