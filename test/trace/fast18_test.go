package trace

import (
	"io"
	"slices"
	"strings"
	"testing"
)

// As in prod-dal09-logstash-2017.06.20-0.json.
const fast18Sample = `[{"host": "dc118836", "http.request.duration": 1.005269323, "http.request.method": "GET",
 "http.request.remoteaddr": "5fb803ae", "http.request.uri": "v2/4715bf52/437c49db/blobs/93054319",
 "http.request.useragent": "docker/17.03.1-ce go/go1.7.5", "http.response.status": 200,
 "http.response.written": 1518, "id": "bd9b7f5cac", "timestamp": "2017-06-20T01:28:15.962Z"},
{"http.request.method": "GET", "http.request.uri": "v2/a/b/manifests/817c8a39", "http.response.status": 200, "http.response.written": 12285, "timestamp": "2017-06-20T01:28:16.000Z"},
{"http.request.method": "GET", "http.request.uri": "v2/a/b/manifests/817c8a39", "http.response.status": 200, "http.response.written": 12286, "timestamp": "2017-06-20T01:28:16.000Z"},
{"http.request.method": "GET", "http.request.uri": "v2/other/repository/blobs/93054319", "http.response.status": 206, "http.response.written": 1518, "timestamp": "2017-06-20T01:28:17Z"},
{"http.request.method": "HEAD", "http.request.uri": "v2/a/b/blobs/93054319", "http.response.status": 200, "http.response.written": 1518, "timestamp": "2017-06-20T01:28:17Z"},
{"http.request.method": "PUT", "http.request.uri": "v2/a/b/manifests/1", "http.response.status": 201, "http.response.written": 0, "timestamp": "2017-06-20T01:28:17Z"},
{"http.request.method": "GET", "http.request.uri": "v2/a/b/manifests/1", "http.response.status": 404, "http.response.written": 90, "timestamp": "2017-06-20T01:28:17Z"},
{"http.request.method": "GET", "http.request.uri": "v2/a/b/blobs/2", "http.response.status": 307, "http.response.written": 0, "timestamp": "2017-06-20T01:28:17Z"},
{"http.request.method": "GET", "http.request.uri": "v2/", "http.response.status": 200, "http.response.written": 2, "timestamp": "2017-06-20T01:28:17Z"}]
`

func readAll(s string) (got []Request, err error) {
	err = ReadFAST18(strings.NewReader(s), func(r Request) bool {
		got = append(got, r)
		return true
	})
	return got, err
}

func TestReadFAST18(t *testing.T) {
	t.Parallel()
	got, err := readAll(fast18Sample)
	if err != nil {
		t.Fatal(err)
	}
	if len(got) != 4 {
		t.Fatalf("got %d requests, want 4: %v", len(got), got)
	}
	want := Request{Time: 1497922095, Key: got[0].Key, Size: 1518}
	if got[0] != want {
		t.Errorf("first is %+v, want %+v", got[0], want)
	}
	if got[3].Key != got[0].Key {
		t.Error("a blob is another one in another repository")
	}
	if !got[1].Manifest || got[1].Key == got[2].Key {
		t.Error("a tag that moved has the same manifest")
	}
	n := 0
	if err := ReadFAST18(strings.NewReader(fast18Sample), func(Request) bool { n++; return false }); err != nil || n != 1 {
		t.Errorf("visited %d requests, want to stop at the first; %v", n, err)
	}
}

func TestReadFAST18Errors(t *testing.T) {
	t.Parallel()
	const get = `{"http.request.method":"GET","http.request.uri":"v2/a/b/blobs/1","http.response.status":200,`
	for name, c := range map[string]struct{ in, want string }{
		"empty":     {"", "record 0, before byte 0: unexpected EOF"},
		"no array":  {"{}", "record 0, before byte 1: { where an array must begin"},
		"cut off":   {fast18Sample[:700], "unexpected EOF"},
		"not JSON":  {"[{}, nonsense]", "record 2, before byte 4: invalid character"},
		"type":      {`[{"http.response.status": "200"}]`, "record 1, before byte 32: json: cannot unmarshal string"},
		"negative":  {"[" + get + `"http.response.written":-1,"timestamp":"2017-06-20T01:28:17Z"}]`, "record 1, before byte 155: http.response.written is -1"},
		"no time":   {"[" + get + `"http.response.written":1}]`, "record 1, before byte 119: no timestamp"},
		"bad time":  {"[" + get + `"http.response.written":1,"timestamp":"yesterday"}]`, "parsing time"},
		"long":      {`[{"id":"` + strings.Repeat("x", 2*maxFAST18Record) + `"}]`, "record 1, before byte 1: record of more than 65536 bytes"},
		"more":      {"[] []", "more after the array"},
		"long more": {"[]" + strings.Repeat(" ", 2*maxFAST18Record), "record of more than 65536 bytes"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if _, err := readAll(c.in); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got error %v, want %q", err, c.want)
			}
		})
	}
}

// endless is an endless record.
type endless struct{ read int }

func (e *endless) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = '['
	}
	e.read += len(p)
	return len(p), nil
}

func TestReadFAST18Bounded(t *testing.T) {
	t.Parallel()
	e := &endless{}
	if err := ReadFAST18(io.MultiReader(strings.NewReader("["), e), nil); err == nil {
		t.Error("an endless record is none")
	}
	if e.read > 2*maxFAST18Record {
		t.Errorf("%d bytes were read of an endless record", e.read)
	}
	// Many short records are not one long record.
	many := "[" + strings.Repeat(`{"id":"x"},`, maxFAST18Record/4) + "{}]"
	if got, err := readAll(many); err != nil || len(got) != 0 {
		t.Errorf("got %d requests, and %v", len(got), err)
	}
}

func FuzzReadFAST18(f *testing.F) {
	f.Add(fast18Sample)
	f.Add("[]")
	f.Fuzz(func(t *testing.T, s string) {
		got, err := readAll(s)
		if err == nil && slices.ContainsFunc(got, func(r Request) bool { return r.Size <= 0 }) {
			t.Errorf("sizes of %v", got)
		}
	})
}
