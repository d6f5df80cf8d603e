package upstream

import (
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"testing"
	"time"
)

func TestParseChallenge(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		headers []string
		want    challenge
		ok      bool
	}{
		{[]string{`Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a/b:pull"`}, challenge{"bearer", "https://auth.docker.io/token", "registry.docker.io", "repository:a/b:pull"}, true},
		{[]string{`bearer REALM=https://a/t , Service=x`}, challenge{"bearer", "https://a/t", "x", ""}, true},
		{[]string{`Basic realm="a, \"b\""`}, challenge{scheme: "basic", realm: `a, "b"`}, true},
		{[]string{`Basic realm="x", Bearer realm="https://a/t",error="invalid_token"`}, challenge{scheme: "bearer", realm: "https://a/t"}, true},
		{[]string{`Negotiate`, `Basic realm="x"`}, challenge{scheme: "basic", realm: "x"}, true},
		{[]string{`Negotiate abc==, Basic realm="x"`}, challenge{scheme: "basic", realm: "x"}, true},
		{[]string{`Basic`}, challenge{scheme: "basic"}, true},
		{[]string{`Bearer scope="a:b:pull"`, `Basic realm="x"`}, challenge{scheme: "basic", realm: "x"}, true},
		{[]string{`Bearer realm="https://a/t`}, challenge{}, false},
		{[]string{`Bearer realm="https://a/t\`}, challenge{}, false},
		{[]string{`realm="x"`}, challenge{}, false},
		{[]string{`Digest realm="x"`}, challenge{}, false},
		{[]string{``}, challenge{}, false},
		{nil, challenge{}, false},
	} {
		got, ok := parseChallenge(tt.headers)
		if got != tt.want || ok != tt.ok {
			t.Errorf("%q: %+v, %v; want %+v, %v", tt.headers, got, ok, tt.want, tt.ok)
		}
	}
}

func FuzzChallenge(f *testing.F) {
	for _, s := range []string{`Bearer realm="https://a/t",service="b",scope="c"`, `Basic realm="a\"b"`, `Negotiate a==, Basic`, `Bearer realm="`, `,,=,`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		c, ok := parseChallenge([]string{s})
		if ok && c.scheme != "basic" && (c.scheme != "bearer" || c.realm == "") || !ok && c != (challenge{}) {
			t.Errorf("%q: %+v, %v", s, c, ok)
		}
		for _, v := range []string{c.realm, c.service, c.scope} {
			if len(v) > len(s) {
				t.Errorf("%q: %q comes from nowhere", s, v)
			}
		}
	})
}

func TestParseContentRange(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		s                 string
		start, end, total int64
		ok                bool
	}{
		{"bytes 5-9/10", 5, 9, 10, true},
		{"Bytes 0-0/1", 0, 0, 1, true},
		{"bytes 5-9/*", 5, 9, -1, true},
		{"bytes 5-10/10", 0, 0, 0, false},
		{"bytes 9-5/10", 0, 0, 0, false},
		{"bytes -5/10", 0, 0, 0, false},
		{"bytes 5-/10", 0, 0, 0, false},
		{"bytes +5-9/10", 0, 0, 0, false},
		{"bytes */10", 0, 0, 0, false},
		{"bytes 5-9", 0, 0, 0, false},
		{"lines 5-9/10", 0, 0, 0, false},
		{"bytes=5-9/10", 0, 0, 0, false},
		{"bytes 5-9/99999999999999999999", 0, 0, 0, false},
		{"", 0, 0, 0, false},
	} {
		start, end, total, ok := parseContentRange(tt.s)
		if start != tt.start || end != tt.end || total != tt.total || ok != tt.ok {
			t.Errorf("%q: %d %d %d %v", tt.s, start, end, total, ok)
		}
	}
}

func FuzzContentRange(f *testing.F) {
	for _, s := range []string{"bytes 5-9/10", "bytes 0-0/*", "bytes 9-5/1", "bytes */5", " ", "bytes 1-9223372036854775807/*"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		start, end, total, ok := parseContentRange(s)
		if ok && (start < 0 || end < start || total != -1 && end >= total) || !ok && start+end+total != 0 {
			t.Errorf("%q: %d %d %d %v", s, start, end, total, ok)
		}
	})
}

func TestParseRetryAfter(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for s, want := range map[string]time.Duration{
		"": 0, "0": 0, "30": 30 * time.Second, " 30 ": 30 * time.Second, "-5": 0, "1.5": 0, "soon": 0,
		"9999999999999999999": 0, "999999999": maxRetryAfter,
		strconv.FormatInt(now.Unix()+90, 10): 90 * time.Second, "1000000000": 0, // a Unix time, as from Docker Hub
		now.Add(90 * time.Second).Format(http.TimeFormat): 90 * time.Second,
		now.Add(-time.Hour).Format(http.TimeFormat):       0,
		now.AddDate(1, 0, 0).Format(http.TimeFormat):      maxRetryAfter,
	} {
		if got := parseRetryAfter(http.Header{"Retry-After": {s}}, now); got != want {
			t.Errorf("%q: %s, want %s", s, got, want)
		}
	}
	ahead := http.Header{"Date": {now.Add(time.Hour).Format(http.TimeFormat)}, "Retry-After": {now.Add(time.Hour + 5*time.Second).Format(http.TimeFormat)}}
	if got := parseRetryAfter(ahead, now); got != 5*time.Second {
		t.Errorf("by a clock an hour ahead: %s", got)
	}
}

func FuzzRetryAfter(f *testing.F) {
	for _, s := range []string{"30", "Fri, 02 Jan 2026 03:04:05 GMT", "-1", "99999999999999999999"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if d := parseRetryAfter(http.Header{"Retry-After": {s}}, time.Unix(1<<30, 0)); d < 0 || d > maxRetryAfter {
			t.Errorf("%q: %s", s, d)
		}
	})
}

func TestParseRateLimit(t *testing.T) {
	t.Parallel()
	for s, want := range map[string]int64{"100;w=21600": 100, "76": 76, " 0 ; w=1": 0} {
		if n, ok := parseRateLimit(s); n != want || !ok {
			t.Errorf("%q: %d, %v", s, n, ok)
		}
	}
	for _, s := range []string{"", ";w=1", "-1", "many", "1e3"} {
		if n, ok := parseRateLimit(s); ok {
			t.Errorf("%q: %d", s, n)
		}
	}
}

func FuzzRateLimit(f *testing.F) {
	for _, s := range []string{"100;w=21600", ";", "1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if n, ok := parseRateLimit(s); n < 0 || !ok && n != 0 {
			t.Errorf("%q: %d, %v", s, n, ok)
		}
	})
}

func TestParseNextLink(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		headers []string
		want    string
	}{
		{[]string{`</v2/a/tags/list?last=b&n=1>; rel="next"`}, "/v2/a/tags/list?last=b&n=1"},
		{[]string{`<b>;rel=next`}, "b"},
		{[]string{`<a>; rel="prev", <b,c>; title="x, y"; rel="last next"`}, "b,c"},
		{[]string{`<a>; rel=prev`, `<b>; REL=NEXT`}, "b"},
		{[]string{`<a>`}, ""},
		{[]string{`<a; rel="next"`}, ""},
		{[]string{`a; rel="next"`}, ""},
		{[]string{`<a>; rel="next`}, ""},
		{nil, ""},
	} {
		if got := parseNextLink(tt.headers); got != tt.want {
			t.Errorf("%q: %q, want %q", tt.headers, got, tt.want)
		}
	}
}

func FuzzNextLink(f *testing.F) {
	for _, s := range []string{`</v2/a?b>; rel="next"`, `<a>; rel=prev, <b>; rel=next`, `<`, `<a>;;`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		got := parseNextLink([]string{s})
		if got != "" && !strings.Contains(s, "<"+got+">") {
			t.Errorf("%q: %q comes from nowhere", s, got)
		}
	})
}

func FuzzRedirectTarget(f *testing.F) {
	for _, s := range []string{"/a", "http://b/", "https://b:1/?x", "//c", "https://a:b@c/", "http://[::1]:1/", ""} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		from, err := url.Parse("https://r.test/v2/a/blobs/b")
		if err != nil {
			t.Fatal(err)
		}
		u, wrong := new(Registry).redirectTarget("blob", from, from, s, true)
		if wrong == nil && (u.Scheme != "https" || u.Host == "" || u.User != nil) {
			t.Errorf("%q: %s", s, u)
		}
	})
}

func TestPrintable(t *testing.T) {
	t.Parallel()
	for s, want := range map[string]string{
		"plain": "plain", "a\nb\tc": "a b c", "\x1b[31mred\x00": "[31mred", "\xff": "", "ü": "ü",
		strings.Repeat("ü", 20): "üüüüü...",
	} {
		if got := printable(s, 11); got != want {
			t.Errorf("%q: %q, want %q", s, got, want)
		}
	}
}
