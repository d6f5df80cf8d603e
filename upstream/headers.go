package upstream

import (
	"net/http"
	"strconv"
	"strings"
	"time"
)

// parseContentRange parses "bytes 5-9/10" (RFC 9110 section 14.4). total is -1
// for "*".
func parseContentRange(s string) (start, end, total int64, ok bool) {
	unit, rest, found := strings.Cut(strings.TrimSpace(s), " ")
	if !found || !strings.EqualFold(unit, "bytes") {
		return 0, 0, 0, false
	}
	span, size, found := strings.Cut(strings.TrimSpace(rest), "/")
	if !found {
		return 0, 0, 0, false
	}
	first, last, found := strings.Cut(span, "-")
	if !found {
		return 0, 0, 0, false
	}
	start, ok1 := parseDecimal(first)
	end, ok2 := parseDecimal(last)
	if !ok1 || !ok2 || end < start {
		return 0, 0, 0, false
	}
	if size == "*" {
		return start, end, -1, true
	}
	total, ok = parseDecimal(size)
	if !ok || end >= total {
		return 0, 0, 0, false
	}
	return start, end, total, true
}

// parseDecimal accepts digits only; strconv.ParseInt would also accept a sign.
func parseDecimal(s string) (int64, bool) {
	if s == "" || len(s) > 19 || strings.Trim(s, "0123456789") != "" {
		return 0, false
	}
	n, err := strconv.ParseInt(s, 10, 64)
	return n, err == nil
}

// maxRetryAfter bounds how long an upstream can make us wait: its limit may be reset
// earlier, and its clock may be wrong.
const maxRetryAfter = time.Hour

// leastUnix is the least number in Retry-After that is read as a Unix time and not as
// seconds: Docker Hub sends the time when its window ends.
const leastUnix = 1_000_000_000

// parseRetryAfter parses the seconds or date of a Retry-After (RFC 9110 section
// 10.2.3), or a Unix time; 0 when it is none of them or has passed. A time is compared
// with the Date of the response, or with now if it has none.
func parseRetryAfter(h http.Header, now time.Time) time.Duration {
	s := strings.TrimSpace(h.Get("Retry-After"))
	if date, err := http.ParseTime(h.Get("Date")); err == nil {
		now = date
	}
	var wait time.Duration
	if n, ok := parseDecimal(s); !ok {
		t, err := http.ParseTime(s)
		if err != nil {
			return 0
		}
		wait = t.Sub(now)
	} else if n >= leastUnix {
		wait = time.Unix(n, 0).Sub(now)
	} else {
		wait = time.Duration(n) * time.Second
	}
	return min(max(wait, 0), maxRetryAfter)
}

// parseRateLimit parses Docker Hub's "100;w=21600": pulls, and the window in which they are
// counted, which is not used.
func parseRateLimit(s string) (int64, bool) {
	n, _, _ := strings.Cut(s, ";")
	return parseDecimal(strings.TrimSpace(n))
}

// parseNextLink finds the target of rel="next" among Link headers (RFC 8288),
// "" when there is none.
func parseNextLink(headers []string) string {
	for _, h := range headers {
		for h != "" {
			var target string
			var params []param
			var ok bool
			target, params, h, ok = scanLink(h)
			if !ok {
				break
			}
			for _, p := range params {
				if strings.EqualFold(p.name, "rel") && containsFold(strings.Fields(p.value), "next") {
					return target
				}
			}
		}
	}
	return ""
}

func containsFold(list []string, want string) bool {
	for _, s := range list {
		if strings.EqualFold(s, want) {
			return true
		}
	}
	return false
}

// scanLink takes one link-value off the front of s.
func scanLink(s string) (target string, params []param, rest string, ok bool) {
	s = strings.TrimLeft(s, " \t,")
	if !strings.HasPrefix(s, "<") {
		return "", nil, "", false
	}
	target, s, ok = strings.Cut(s[1:], ">")
	if !ok {
		return "", nil, "", false
	}
	for {
		s = strings.TrimLeft(s, " \t")
		if !strings.HasPrefix(s, ";") {
			break
		}
		p, after, ok := scanParam(strings.TrimLeft(s[1:], " \t"))
		if !ok {
			return "", nil, "", false
		}
		params, s = append(params, p), after
	}
	if s != "" && s[0] != ',' {
		return "", nil, "", false
	}
	return target, params, s, true
}
