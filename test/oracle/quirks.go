package oracle

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"

	ut "github.com/cachalot-registry/cachalot/upstream/upstreamtest"
)

// phase is when a quirk starts.
type phase int

const (
	cold   phase = iota // the first pull
	warm                // stored content is pulled again, unchecked
	due                 // and with a check
	moved               // the tag has moved
	during              // the upstream is down
	after               // the upstream is up again
)

func (p phase) String() string {
	return [...]string{"cold", "warm", "due", "after the tag moved", "during the outage", "after the outage"}[p]
}

// quirk is an unusual behaviour of a registry.
type quirk struct {
	name    string
	from    phase
	no      string // the registry's own 404 for tags: the repository, or "all"
	noLists string // the same for lists
	brief   bool   // it ends with its phase
	// misnamed: it sends other digests than the content's. Without a SHA-256 digest,
	// nothing shows the right one.
	misnamed bool
	unkept   bool // a client that knows the length gets right content; the mirror must not store it
	shared   bool // it affects more than the sick repository's objects
	unnamed  bool // it sends no digests: the content that it sends for a tag is right by definition
	option   func(*ut.Options)
	faults   func(*world) []*ut.Scripted
}

// outage is a way in which a registry is down.
type outage struct {
	name  string
	lies  bool // also for lists, whose wrong bytes no digest shows
	begin func(*world) (end func())
}

// kinds return one quirk each, drawn at random.
func kinds() []func(*rand.Rand) quirk {
	return []func(*rand.Rand) quirk{
		// Authentication.
		func(r *rand.Rand) quirk {
			elsewhere, expires, access := r.IntN(2) == 0, []int{0, 1, 300}[r.IntN(3)], r.IntN(2) == 0
			scope := []string{"", "", "aws", "repository:another/name:pull"}[r.IntN(4)]
			return option(fmt.Sprintf("tokens: elsewhere %t, expires_in %d, access_token %t, scope %q", elsewhere, expires, access, scope), func(o *ut.Options) {
				o.Auth, o.TokenElsewhere, o.ExpiresIn, o.AccessToken, o.Scope = ut.Bearer, elsewhere, expires, access, scope
			})
		},
		func(*rand.Rand) quirk {
			return option("redirects blobs to a CDN", func(o *ut.Options) { o.CDN = true })
		},
		func(r *rand.Rand) quirk {
			size, none := r.IntN(3), r.IntN(2) == 0
			return option(fmt.Sprintf("lists: pages of %d, no referrers API %t", size, none), func(o *ut.Options) {
				o.PageSize, o.NoReferrers = size, none
			})
		},
		func(r *rand.Rand) quirk { return some(r, "tags", anyOf(ut.Tags), answers(r)) },
		func(r *rand.Rand) quirk { return some(r, "tags", anyOf(ut.Tags), broken(r)) },
		func(r *rand.Rand) quirk { return some(r, "referrers", anyOf(ut.Referrers), answers(r)) },
		func(r *rand.Rand) quirk { return some(r, "ping", anyOf(ut.Ping), answers(r)) },
		func(r *rand.Rand) quirk { return some(r, "token", anyOf(ut.Token), answers(r)) },
		// Requests that only the mirror or some clients send.
		func(r *rand.Rand) quirk { return some(r, "HEAD of manifests", anyOf(ut.HeadManifest), headAnswers(r)) },
		func(r *rand.Rand) quirk { return some(r, "HEAD of blobs", anyOf(ut.HeadBlob), headAnswers(r)) },
		func(r *rand.Rand) quirk { return some(r, "HEAD", anyOf(ut.HeadBlob, ut.HeadManifest), headAnswers(r)) },
		func(r *rand.Rand) quirk {
			q := some(r, "Range", anyOf(ut.GetBlob, ut.CDN), rangeAnswers(r))
			broken := broken(r)
			return and(q, some(r, "first", anyOf(ut.GetBlob, ut.CDN), broken))
		},
		// Correct but unusual responses.
		func(r *rand.Rand) quirk {
			return some(r, "manifests", anyOf(ut.HeadManifest, ut.GetManifest), labels(r))
		},
		func(r *rand.Rand) quirk { return some(r, "blobs", anyOf(ut.HeadBlob, ut.GetBlob, ut.CDN), labels(r)) },
		// Wrong responses.
		func(r *rand.Rand) quirk { return some(r, "manifests", anyOf(ut.GetManifest), wrong(r)) },
		func(r *rand.Rand) quirk { return some(r, "blobs", anyOf(ut.GetBlob, ut.CDN), wrong(r)) },
		func(r *rand.Rand) quirk { return some(r, "manifests", anyOf(ut.GetManifest), answers(r)) },
		func(r *rand.Rand) quirk { return some(r, "blobs", anyOf(ut.GetBlob), answers(r)) },
		func(r *rand.Rand) quirk { return some(r, "the CDN", anyOf(ut.CDN), answers(r)) },
		func(r *rand.Rand) quirk { return some(r, "blobs", anyOf(ut.GetBlob, ut.CDN), broken(r)) },
		func(r *rand.Rand) quirk { return some(r, "all", anyOf(""), answers(r)) },
		// Slow responses.
		func(r *rand.Rand) quirk {
			op := []ut.Op{ut.HeadManifest, ut.GetManifest, ut.HeadBlob, ut.GetBlob, ut.Tags, ut.Token, ut.Ping}[r.IntN(7)]
			took := time.Duration(1+r.IntN(4)) * time.Second
			return some(r, string(op), anyOf(op), fault{fmt.Sprintf("after %s", took), false, []ut.Fault{ut.Delay(took)}})
		},
		// URLs and tokens that expire.
		func(r *rand.Rand) quirk {
			at := phase(1 + r.IntN(int(after)))
			return quirk{name: fmt.Sprintf("tokens and signatures end, from %d", at), from: at, faults: func(w *world) []*ut.Scripted {
				w.up.RevokeTokens()
				w.up.ExpireCDN()
				return nil
			}}
		},
	}
}

func option(name string, set func(*ut.Options)) quirk { return quirk{name: name, option: set} }

// and combines two quirks.
func and(a, b quirk) quirk {
	return quirk{name: a.name + "; " + b.name, from: a.from, shared: a.shared || b.shared, brief: a.brief || b.brief, faults: func(w *world) []*ut.Scripted {
		return append(a.faults(w), b.faults(w)...)
	}}
}

func anyOf(ops ...ut.Op) []ut.Op { return ops }

// fault is a kind of response, and its name.
type fault struct {
	name   string
	no     bool // the registry's own 404, in its own format
	faults []ut.Fault
}

// some applies a fault to requests of these ops: for all objects or one, now or from a
// later phase on, always or a few times.
func some(r *rand.Rand, what string, ops []ut.Op, f fault) quirk {
	times := []int{0, 0, 0, 1, 2}[r.IntN(5)]
	from := []phase{cold, cold, cold, due, moved}[r.IntN(5)]
	one := r.IntN(3) // index of the blob or manifest; the last one: all
	often := "always"
	if times > 0 {
		often = fmt.Sprintf("%d times", times)
	}
	q := quirk{name: fmt.Sprintf("%s (object %d, from %d, %s): %s", what, one, from, often, f.name), from: from}
	q.brief = times > 0
	q.unkept = f.name == "longer by one"
	q.unnamed, q.misnamed = f.name == "no digest", f.name == "another digest"
	q.shared = slices.ContainsFunc(ops, func(op ut.Op) bool { return op == ut.Ping || op == ut.Token || op == "" || op == ut.CDN && one == 2 })
	if f.no && slices.Contains(ops, ut.GetManifest) {
		q.no = sick
	} else if f.no && slices.Contains(ops, "") {
		q.no = "all"
	} else if f.no && (slices.Contains(ops, ut.Tags) || slices.Contains(ops, ut.Referrers)) {
		q.noLists = sick
	}
	q.faults = func(w *world) (list []*ut.Scripted) {
		for _, op := range ops {
			match := ut.Match{Op: op, Repo: sick, Times: times}
			switch op {
			case ut.Ping, ut.Token, ut.CDN, "":
				match.Repo = ""
			case ut.GetBlob, ut.HeadBlob:
				match.Reference = pick(w.first.blobs, one)
			}
			if op == ut.CDN {
				match.Reference = pick(w.first.blobs, one)
			}
			list = append(list, w.up.Fault(match, f.faults...))
		}
		return list
	}
	return q
}

func pick(list []ut.Content, n int) string {
	if n >= len(list) {
		return ""
	}
	return list[n].Digest.String()
}

// answers are statuses, and pages that are not the registry's.
func answers(r *rand.Rand) fault {
	code := []int{400, 401, 403, 404, 405, 406, 410, 429, 500, 502, 503}[r.IntN(11)]
	switch r.IntN(6) {
	case 0:
		return fault{"200 with a page", false, []ut.Fault{ut.Body("text/html", []byte("<html>log in</html>"))}}
	case 1:
		return fault{fmt.Sprintf("%d with a page", code), false, []ut.Fault{ut.Body("text/html", []byte("<html>no</html>")), ut.StatusOf(code)}}
	case 2:
		return fault{fmt.Sprintf("%d, empty", code), false, []ut.Fault{ut.Body("", nil), ut.StatusOf(code)}}
	case 3:
		return fault{"200, empty", false, []ut.Fault{ut.Body("", nil)}}
	case 4:
		return fault{"no answer", false, []ut.Fault{ut.BlackHole()}}
	default:
		return fault{fmt.Sprint(code), code == http.StatusNotFound || code == http.StatusGone, []ut.Fault{ut.Status(code)}}
	}
}

// headAnswers are responses to HEAD by a registry with poor support for it.
func headAnswers(r *rand.Rand) fault {
	switch r.IntN(5) {
	case 0:
		return fault{"Content-Length: 0", false, []ut.Fault{ut.Body("", nil)}}
	case 1:
		return fault{"no digest", false, []ut.Fault{ut.NoDigest()}}
	case 2:
		return fault{"another digest", false, []ut.Fault{ut.LyingDigest(digest.FromString("another"))}}
	default:
		return answers(r)
	}
}

func rangeAnswers(r *rand.Rand) fault {
	code := []int{400, 403, 404, 405, 416, 500, 501, 503}[r.IntN(8)]
	switch r.IntN(6) {
	case 0:
		return fault{"ignored", false, []ut.Fault{ut.IgnoreRange()}}
	case 1:
		return fault{"without Content-Range", false, []ut.Fault{ut.WrongContentRange("")}}
	case 2:
		return fault{"with another Content-Range", false, []ut.Fault{ut.WrongContentRange("bytes 0-1/2")}}
	case 3:
		return fault{"shifted", false, []ut.Fault{ut.ShiftedRange(1)}}
	default:
		return fault{fmt.Sprint(code), false, []ut.Fault{ut.OfRanges(ut.Status(code))}}
	}
}

// labels are missing headers, or headers that do not fit the bytes.
func labels(r *rand.Rand) fault {
	list := []fault{
		{"no digest", false, []ut.Fault{ut.NoDigest()}},
		{"no length", false, []ut.Fault{ut.NoLength()}},
		{"no length and no chunks", false, []ut.Fault{ut.OpenEnd()}},
		{"a label of aws-chunked", false, []ut.Fault{ut.Header("Content-Encoding", "aws-chunked")}},
		{"a label of gzip", false, []ut.Fault{ut.Header("Content-Encoding", "gzip")}},
		{"a label of UTF-8", false, []ut.Fault{ut.Header("Content-Encoding", "UTF-8")}},
		{"compressed", false, []ut.Fault{ut.Gzip()}},
		{"text/plain", false, []ut.Fault{ut.Header("Content-Type", "text/plain")}},
		{"application/json", false, []ut.Fault{ut.Header("Content-Type", "application/json; charset=utf-8")}},
		{"no media type", false, []ut.Fault{ut.Header("Content-Type", "")}},
		{"203", false, []ut.Fault{ut.StatusOf(http.StatusNonAuthoritativeInfo)}},
		{"the digest of sha512", false, []ut.Fault{ut.DigestBy(digest.SHA512)}},
	}
	return list[r.IntN(len(list))]
}

// wrong are responses with other content than requested.
func wrong(r *rand.Rand) fault {
	list := []fault{
		{"a wrong byte", false, []ut.Fault{ut.WrongBytes()}},
		{"shorter by one", false, []ut.Fault{ut.ChangedLength(-1)}},
		{"longer by one", false, []ut.Fault{ut.ChangedLength(1)}},
		{"another digest", false, []ut.Fault{ut.LyingDigest(digest.FromString("another"))}},
		{"an error with 200", false, []ut.Fault{ut.Body("application/json", []byte(`{"errors":[{"code":"UNKNOWN"}]}`))}},
		{"empty JSON", false, []ut.Fault{ut.Body("application/json", []byte(`{}`))}},
	}
	return list[r.IntN(len(list))]
}

// broken are bodies that do not end properly.
func broken(r *rand.Rand) fault {
	at := []int{0, 1, 50, 10_000, 100_000}[r.IntN(5)]
	switch r.IntN(4) {
	case 0:
		return fault{fmt.Sprintf("cut after %d", at), false, []ut.Fault{ut.CutAfter(at)}}
	case 1:
		return fault{fmt.Sprintf("reset after %d", at), false, []ut.Fault{ut.ResetAfter(at)}}
	case 2:
		return fault{fmt.Sprintf("cut after %d, without a length", at), false, []ut.Fault{ut.OpenEnd(), ut.CutAfter(at)}}
	default:
		return fault{fmt.Sprintf("no more after %d", at), false, []ut.Fault{ut.StallAfter(at, nil)}}
	}
}

// outages are the ways in which a registry is down. None is the registry's own 404.
func outages() []outage {
	return []outage{
		{"refuses connections", false, func(w *world) func() { w.up.Down(); return w.up.Up }},
		everywhere("no answer", ut.BlackHole()),
		everywhere("500", ut.Status(500)),
		everywhere("503 of a front", ut.Body("text/html", []byte("<html>no backend</html>")), ut.StatusOf(503)),
		everywhere("403", ut.Status(403)),
		everywhere("403 of a firewall", ut.Body("text/html", []byte("<html>blocked</html>")), ut.StatusOf(403)),
		everywhere("401, and no challenge", ut.Status(401)),
		everywhere("401 for everybody", ut.Status(401, "WWW-Authenticate", `Bearer realm="http://127.0.0.1:1/token",service="x"`)),
		everywhere("404 of a default backend", ut.Body("text/plain", []byte("default backend - 404")), ut.StatusOf(404)),
		everywhere("404, empty", ut.Body("", nil), ut.StatusOf(404)),
		everywhere("200 with a login page", ut.Body("text/html", []byte("<html>log in</html>"))),
		everywhere("200, empty", ut.Body("", nil)),
		everywhere("200 with an error", ut.Body("application/json", []byte(`{"errors":[{"code":"UNKNOWN"}]}`))),
		everywhere("429", ut.Status(429, "Retry-After", "1")),
		everywhere("redirects to a page", ut.Redirect("/login")),
		lying(everywhere("wrong bytes", ut.WrongBytes())),
		everywhere("cut", ut.CutAfter(10)),
	}
}

func everywhere(name string, faults ...ut.Fault) outage {
	return outage{name, false, func(w *world) func() { return w.up.Fault(ut.Match{AnyAuth: true}, faults...).Remove }}
}

func lying(o outage) outage {
	o.lies = true
	return o
}
