package trace

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"strings"
	"time"
)

// maxFAST18Record is far above the records of the traces (about 500 bytes). A longer record
// is an error after at most twice as many bytes, so that memory is bounded.
const maxFAST18Record = 64 << 10

// ReadFAST18 calls visit for each GET of a manifest or blob in a file of the
// docker-registry traces of FAST 2018 (IBM, 2017; anonymized), until it returns
// false. Such a file is a JSON array of objects; these fields count:
//
//	"http.request.method": "GET"
//	"http.request.uri": "v2/47cbd874/a83fa527/blobs/93054319"
//	"http.response.status": 200
//	"http.response.written": 12285
//	"timestamp": "2017-06-20T01:28:15.962Z"
//
// A blob is identified by its digest. A tag may move, so a manifest is identified by its
// URI and size. Responses without a body, and refused requests, are skipped. Times are as
// in the file and may be unsorted. An error has the record and the byte.
func ReadFAST18(r io.Reader, visit func(Request) bool) error {
	limited := &limitedReader{r: r}
	d := json.NewDecoder(limited)
	fail := func(n int, err error) error {
		return fmt.Errorf("read trace: record %d, before byte %d: %w", n, d.InputOffset(), err)
	}
	limited.left = maxFAST18Record
	if t, err := d.Token(); err != nil {
		return fail(0, unexpected(err))
	} else if t != json.Delim('[') {
		return fail(0, fmt.Errorf("%v where an array must begin", t))
	}
	for n := 1; ; n++ {
		limited.left = maxFAST18Record // plus the decoder's read-ahead
		if !d.More() {
			break
		}
		var rec fast18
		if err := d.Decode(&rec); err != nil {
			return fail(n, unexpected(err))
		}
		req, ok, err := rec.request()
		if err != nil {
			return fail(n, err)
		}
		if ok && !visit(req) {
			return nil
		}
	}
	if _, err := d.Token(); err != nil {
		return fail(0, unexpected(err))
	}
	limited.left = maxFAST18Record
	rest, err := io.ReadAll(io.MultiReader(d.Buffered(), limited))
	if err == nil && len(bytes.TrimSpace(rest)) > 0 {
		err = errors.New("more after the array")
	}
	if err != nil {
		return fail(0, err)
	}
	return nil
}

type fast18 struct {
	Method    string    `json:"http.request.method"`
	URI       string    `json:"http.request.uri"`
	Status    int       `json:"http.response.status"`
	Written   float64   `json:"http.response.written"`
	Timestamp time.Time `json:"timestamp"`
}

// request returns the requested content, or false if the record has none.
func (f fast18) request() (Request, bool, error) {
	parts := strings.Split(strings.TrimPrefix(f.URI, "/"), "/")
	if f.Method != "GET" || f.Status/100 != 2 || len(parts) < 4 || parts[0] != "v2" {
		return Request{}, false, nil
	}
	size, kind := int64(f.Written), parts[len(parts)-2]
	switch {
	case f.Written < 0 || f.Written > 1<<50:
		return Request{}, false, fmt.Errorf("http.response.written is %v", f.Written)
	case f.Timestamp.IsZero():
		return Request{}, false, errors.New("no timestamp")
	case size == 0 || kind != "blobs" && kind != "manifests":
		return Request{}, false, nil
	}
	name := parts[len(parts)-1]
	if kind == "manifests" {
		name = fmt.Sprint(f.URI, " ", size)
	}
	h := fnv.New64a()
	_, _ = io.WriteString(h, name)
	return Request{Time: f.Timestamp.Unix(), Key: h.Sum64(), Size: size, Manifest: kind == "manifests"}, true, nil
}

func unexpected(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// limitedReader fails after left bytes.
type limitedReader struct {
	r    io.Reader
	left int
}

func (l *limitedReader) Read(p []byte) (int, error) {
	if l.left <= 0 {
		return 0, fmt.Errorf("record of more than %d bytes", maxFAST18Record)
	}
	n, err := l.r.Read(p[:min(len(p), l.left)])
	l.left -= n
	return n, err
}
