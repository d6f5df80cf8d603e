package proxy

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"

	"github.com/distribution/distribution/v3/registry/api/errcode"

	"github.com/cachalot-registry/cachalot/bounds"
	"github.com/cachalot-registry/cachalot/storage"
)

// byteRange is one range of a request, from start to last, both included.
type byteRange struct{ start, last int64 }

// maxRanges of one request; with more it gets the whole blob (RFC 9110 section 14.2).
const maxRanges = 1024

var (
	errMalformedRange     = errors.New("malformed range")
	errUnsatisfiableRange = errors.New("no range is within the content")
)

// parseRange reads a Range header for content of size bytes (RFC 9110, section
// 14.1.2). No ranges means the whole content; ranges beyond its end are left out.
func parseRange(header string, size int64) ([]byteRange, error) {
	unit, set, ok := strings.Cut(header, "=")
	if !ok || !strings.EqualFold(strings.TrimSpace(unit), "bytes") {
		return nil, nil // another unit: ignored
	}
	specs := strings.Split(set, ",")
	if len(specs) > maxRanges {
		return nil, nil
	}
	var ranges []byteRange
	asked := false
	for _, spec := range specs {
		if spec = strings.TrimSpace(spec); spec == "" {
			continue // empty list elements are allowed
		}
		asked = true
		first, last, ok := strings.Cut(spec, "-")
		if !ok {
			return nil, errMalformedRange
		}
		start, err1 := parsePosition(first)
		end, err2 := parsePosition(last)
		switch {
		case err1 != nil || err2 != nil || first == "" && last == "":
			return nil, errMalformedRange
		case first == "": // the last n bytes
			if end > 0 && size > 0 {
				ranges = append(ranges, byteRange{max(0, size-end), size - 1})
			}
		case last == "" && start < size:
			ranges = append(ranges, byteRange{start, size - 1})
		case last == "":
		case end < start:
			return nil, errMalformedRange
		case start < size:
			ranges = append(ranges, byteRange{start, min(end, size-1)})
		}
	}
	switch {
	case !asked:
		return nil, errMalformedRange
	case len(ranges) == 0:
		return nil, errUnsatisfiableRange
	}
	return ranges, nil
}

// parsePosition reads digits only. A position above the largest int64 becomes that.
func parsePosition(s string) (int64, error) {
	for _, c := range []byte(s) {
		if c < '0' || c > '9' {
			return 0, errMalformedRange
		}
	}
	if s == "" {
		return 0, nil
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if errors.Is(err, strconv.ErrRange) {
		return 1<<63 - 1, nil
	}
	return n, err
}

// limitRange checks the request's ranges. A single range does not complete before the blob
// has verified (Hold); several wait for the whole blob (I1).
func limitRange(w *response, r *http.Request, b *storage.Blob) error {
	header := r.Header.Get("Range")
	if header == "" {
		return nil
	}
	if b.Size < 0 {
		r.Header.Del("Range") // the length is not known yet
		return nil
	}
	ranges, err := parseRange(header, b.Size)
	if err != nil {
		w.Header().Set("Content-Range", fmt.Sprintf("bytes */%d", b.Size))
		return refuse(errcode.ErrorCodeRangeInvalid, http.StatusRequestedRangeNotSatisfiable, "%v: %s", err, bounds.Text(header))
	}
	// The standard library reads the header that is written here.
	r.Header.Del("Range")
	if len(ranges) == 0 {
		return nil
	}
	if len(ranges) > 1 && b.Outcome != storage.Hit {
		if err := b.Wait(w.ctx); errors.Is(err, storage.ErrNotStored) {
			return nil // it can be read only once, in order: send the whole blob
		} else if err != nil {
			return err
		}
	}
	specs := make([]string, len(ranges))
	for i, rg := range ranges {
		specs[i] = fmt.Sprintf("%d-%d", rg.start, rg.last)
	}
	r.Header.Set("Range", "bytes="+strings.Join(specs, ","))
	if len(ranges) == 1 {
		b.Hold(ranges[0].last)
	}
	return nil
}

// noteError records why a read failed, which http.ServeContent does not return.
type noteError struct {
	io.ReadSeeker
	err error
}

func (n *noteError) Read(p []byte) (int, error) {
	m, err := n.ReadSeeker.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		n.err = err
	}
	return m, err
}
