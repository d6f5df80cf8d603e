package ops

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// ask runs a command against a mirror with this handler.
func ask(t *testing.T, answer http.HandlerFunc, args ...string) (stdout, stderr string, err error) {
	t.Helper()
	mirror := httptest.NewServer(answer)
	defer mirror.Close()
	root := &cobra.Command{Use: "cachalot", SilenceErrors: true, SilenceUsage: true}
	root.AddCommand(Commands()...)
	root.SetArgs(append(args, "--admin", mirror.URL))
	var out, errs bytes.Buffer
	root.SetOut(&out)
	root.SetErr(&errs)
	root.SetIn(strings.NewReader(""))
	err = root.ExecuteContext(t.Context())
	return out.String(), errs.String(), err
}

func jsonAnswer(status int, mediaType, body string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", mediaType)
		w.WriteHeader(status)
		_, _ = io.WriteString(w, body)
	}
}

const problemJSON = "application/problem+json"

func TestExitCodes(t *testing.T) {
	t.Parallel()
	for status, want := range map[int]int{400: Usage, 422: Usage, 404: NotFound, 401: Refused, 403: Refused, 409: Failed, 413: Failed, 500: Failed, 503: Failed} {
		_, _, err := ask(t, jsonAnswer(status, problemJSON, `{"status": 200, "code": "x", "detail": "\u001b[2Jwhat to do"}`), "pin", "alpine")
		e, ok := errors.AsType[*Error](err)
		if !ok || e.Code != want || !strings.HasPrefix(e.Error(), `\x1b[2Jwhat to do`) {
			t.Errorf("%d: %v, want exit code %d", status, err, want)
		}
	}
}

// The error says if the server is not cachalot.
func TestNotCachalot(t *testing.T) {
	t.Parallel()
	stolen := false
	other := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { stolen = true }))
	defer other.Close()
	for name, answer := range map[string]http.HandlerFunc{
		"404":      jsonAnswer(http.StatusNotFound, "text/plain", "not found"),
		"redirect": func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, other.URL, http.StatusFound) },
		"page":     jsonAnswer(http.StatusOK, "text/html", "<html>"),
		"problem":  jsonAnswer(http.StatusNotFound, problemJSON, "{}"),
	} {
		_, _, err := ask(t, answer, "pin", "alpine")
		if e, ok := errors.AsType[*Error](err); !ok || e.Code != Failed || !strings.Contains(e.Error(), "cachalot's admin API; give --admin the address of admin.listen") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if stolen {
		t.Error("a redirect was followed, with the token")
	}
}

// The command joins pages to one list, up to the limit.
func TestList_Pages(t *testing.T) {
	t.Parallel()
	const all = 2500
	for _, test := range []struct {
		limit, pages, items int
		more                bool
	}{{0, 3, all, false}, {1, 1, 1, true}, {1000, 1, 1000, true}, {1500, 2, 1500, true}, {2500, 3, all, false}, {5000, 3, all, false}} {
		pages := 0
		stdout, stderr, err := ask(t, func(w http.ResponseWriter, r *http.Request) {
			pages++
			var from, limit int
			_, _ = fmt.Sscan(r.FormValue("cursor"), &from)
			_, _ = fmt.Sscan(r.FormValue("limit"), &limit)
			var names []string
			for n := from; n < min(from+limit, all); n++ {
				names = append(names, fmt.Sprintf(`{"name": "docker.io/r%d"}`, n))
			}
			next := ""
			if from+limit < all {
				next = fmt.Sprintf(`, "next": "%d"`, from+limit)
			}
			jsonAnswer(http.StatusOK, "application/json", `{"taken": "2026-01-02T03:04:05Z", "truncated": false, "repositories": [`+strings.Join(names, ",")+`]`+next+`}`)(w, r)
		}, "ls", "--output", "json", "--limit", fmt.Sprint(test.limit))
		if err != nil {
			t.Fatal(err)
		}
		var got struct {
			Taken        string
			Repositories []struct{ Name string }
		}
		if err := json.Unmarshal([]byte(stdout), &got); err != nil {
			t.Fatal(err)
		}
		if len(got.Repositories) != test.items || pages != test.pages || got.Taken != "2026-01-02T03:04:05Z" || (stderr != "") != test.more {
			t.Errorf("--limit %d: %d items of %d pages, %q", test.limit, len(got.Repositories), pages, stderr)
		}
		if last := got.Repositories[test.items-1].Name; last != fmt.Sprintf("docker.io/r%d", test.items-1) {
			t.Errorf("--limit %d: the last is %s", test.limit, last)
		}
	}
}

// All names are sent in requests that the API accepts. An invalid name does not drop others.
func TestWarmBatches(t *testing.T) {
	t.Parallel()
	var sizes []int
	args := []string{"warm"}
	for n := range 2100 {
		args = append(args, fmt.Sprintf("docker.io/acme/%s:%d", strings.Repeat("a", 150), n))
	}
	args[7] = "Bad"
	stdout, _, err := ask(t, func(w http.ResponseWriter, r *http.Request) {
		var wanted struct{ Images []string }
		b, _ := io.ReadAll(r.Body)
		if len(b) > 512<<10 || json.Unmarshal(b, &wanted) != nil || len(wanted.Images) > 1000 {
			t.Errorf("%d images in %d bytes", len(wanted.Images), len(b))
		}
		if at := slices.Index(wanted.Images, "Bad"); at >= 0 {
			jsonAnswer(http.StatusUnprocessableEntity, problemJSON, fmt.Sprintf(`{"detail": "images[%d]: no name", "parameter": "images[%d]"}`, at, at))(w, r)
			return
		}
		sizes = append(sizes, len(wanted.Images))
		body := fmt.Sprintf(`{"event": "end", "images": %d, "images_done": %d, "images_failed": 0, "size": 10, "done": 10, "fetched": 5}`, len(wanted.Images), len(wanted.Images))
		jsonAnswer(http.StatusOK, "application/x-ndjson", body+"\n")(w, r)
	}, args...)
	sum := 0
	for _, n := range sizes {
		sum += n
	}
	want := fmt.Sprintf("2099 of 2,100 images stored, 1 failed; %d B, of which %d B fetched", 10*len(sizes), 5*len(sizes))
	if sum != 2099 || len(sizes) < 3 || !strings.Contains(stdout, "Bad: failed: no name\n") || !strings.Contains(stdout, want) || err == nil || err.Error() != "1 of 2,100 images could not be fetched" {
		t.Errorf("%v: %v\n%s, want %s", sizes, err, stdout, want)
	}
}

// A response that breaks off is an error.
func TestWarmBrokenOff(t *testing.T) {
	t.Parallel()
	for body, want := range map[string]string{
		`{"event": "progress", "images": 1}` + "\n":                            "ended early",
		`{"event": "end", "images": 1, "error": "stopping"}` + "\n":            "the mirror stopped: stopping",
		`{"event": "progress"}` + "\nnonsense\n":                               "cannot read the answer of",
		`{"event": "image", "image": "a", "error": "\u001b[2J\u009bx"}` + "\n": "ended early",
	} {
		stdout, _, err := ask(t, jsonAnswer(http.StatusOK, "application/x-ndjson", body), "warm", "a")
		if e, ok := errors.AsType[*Error](err); !ok || e.Code != Failed || !strings.Contains(e.Error(), want) {
			t.Errorf("%q: %v", body, err)
		}
		if strings.ContainsAny(stdout, "\x1b\u009b") {
			t.Errorf("%q", stdout)
		}
	}
}

// A shell gets only names that are safe to complete.
func TestCompletionIsSafe(t *testing.T) {
	t.Parallel()
	m := &Mirror{}
	mirror := httptest.NewServer(jsonAnswer(http.StatusOK, "application/json", `{"repositories": [{"name": "a/good"}, {"name": "a/$(reboot)"}, {"name": "a/x y"}, {"name": "a/\u001b"}, {"name": "b/other"}]}`))
	defer mirror.Close()
	m.URL = mirror.URL
	if got, _ := m.offer(t.Context(), repositories, "a/"); !slices.Equal(got, []string{"a/good"}) {
		t.Errorf("%q", got)
	}
}
