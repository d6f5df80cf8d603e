package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cachalot-registry/cachalot/test/trace"
)

func TestTable(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	w := trace.DefaultWorkload(1)
	w.Days, w.Jobs, w.Repositories = 2, 50, 50
	if err := table(w.Requests(), &out); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(out.String(), "| no policy exceeds | ") || strings.Count(out.String(), "\n| ") < 8 {
		t.Errorf("no table:\n%s", &out)
	}
	if err := run([]string{"-days", "1", "-scan", "2"}, &out); err == nil || err.Error() != "workload: no day 2 in 1 days" {
		t.Errorf("a scan after the end: %v", err)
	}
}

func TestRunFiles(t *testing.T) {
	t.Parallel()
	write := func(name, content string) string {
		name = filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return name
	}
	get := func(uri, written, second string) string {
		return `{"http.request.method":"GET","http.request.uri":"` + uri + `","http.response.status":200,` +
			`"http.response.written":` + written + `,"timestamp":"2017-06-20T01:28:` + second + `Z"}`
	}
	a := write("a.json", "["+get("v2/a/b/blobs/1", "2000000000", "03")+","+get("v2/a/b/blobs/2", "1000000000", "02")+"]")
	b := write("b.json", "["+get("v2/a/c/blobs/1", "500000000", "01")+"]")
	var out bytes.Buffer
	if err := run([]string{a, b}, &out); err != nil {
		t.Fatal(err)
	}
	if want := "3 requests for 5 GB, of which 3 GB differ; with room for all: 40.0 % of bytes, 33.3 % of requests."; !strings.HasPrefix(out.String(), want) {
		t.Errorf("got %s\nwant %s", &out, want)
	}
	bad := write("bad.json", "[{]")
	if err := run([]string{bad}, &out); err == nil || !strings.HasPrefix(err.Error(), bad+": read trace: record 1, ") {
		t.Errorf("got %v, want the file's name and the record", err)
	}
}
