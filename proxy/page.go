package proxy

import (
	"crypto/sha256"
	_ "embed"
	"encoding/base64"
	"html/template"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/cachalot-registry/cachalot/proxy/clients"
)

var (
	//go:embed page.html.tmpl
	pageTemplate string
	//go:embed page.css
	pageStyle string
)

// section is a client on the page.
type section struct {
	clients.Client

	Files  []clients.File
	Reason string // why it has no files
}

// page serves a page for browsers that shows how to use the mirror.
func (p *Proxy) page() http.HandlerFunc {
	html := template.Must(template.New("page").Parse(pageTemplate))
	all := clients.All()
	registries := p.names()
	digest := sha256.Sum256([]byte(pageStyle))
	policy := "default-src 'none'; style-src 'sha256-" + base64.StdEncoding.EncodeToString(digest[:]) +
		"'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
	return func(w http.ResponseWriter, r *http.Request) {
		s := clients.Settings{Mirror: mirrorURL(r), Registries: registries, All: true, Default: p.cfg.DefaultUpstream}
		var sections []section
		for _, c := range all {
			files, err := c.Config(s)
			one := section{Client: c, Files: files}
			if err != nil {
				one.Reason = err.Error()
			}
			sections = append(sections, one)
		}
		var b strings.Builder
		err := html.Execute(&b, map[string]any{
			"Style": template.CSS(pageStyle), "Mirror": s.Mirror, "Registries": registries, "Clients": sections, // the style is our own, embedded
		})
		if err != nil {
			p.writeError(w.(*response), r, err)
			return
		}
		h := w.Header()
		h.Set("Content-Type", "text/html; charset=utf-8")
		h.Set("Content-Length", strconv.Itoa(b.Len()))
		h.Set("Content-Security-Policy", policy)
		h.Set("Cache-Control", "no-store") // it depends on Host and X-Forwarded-Proto
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("X-Content-Type-Options", "nosniff")
		if r.Method == http.MethodHead {
			w.WriteHeader(http.StatusOK)
			return
		}
		_, _ = w.Write([]byte(b.String())) // a client that has left is no news
	}
}

// names returns the names of the configured registries, Docker Hub first.
func (p *Proxy) names() []string {
	var names []string
	for name, r := range p.registries.byName {
		if name == r.Name() && clients.ValidRegistry(name) {
			names = append(names, name)
		}
	}
	slices.SortFunc(names, func(a, b string) int {
		if (a == dockerHub) != (b == dockerHub) {
			if a == dockerHub {
				return -1
			}
			return 1
		}
		return strings.Compare(a, b)
	})
	return names
}

// mirrorURL returns the URL by which the client reached the mirror. It trusts the client's
// headers, because only that client sees it.
func mirrorURL(r *http.Request) string {
	scheme := "http"
	switch forwarded := r.Header.Get("X-Forwarded-Proto"); {
	case forwarded == "http" || forwarded == "https":
		scheme = forwarded
	case r.TLS != nil:
		scheme = "https"
	}
	if clients.ValidHost(r.Host) {
		return scheme + "://" + r.Host
	}
	if local, ok := r.Context().Value(http.LocalAddrContextKey).(net.Addr); ok && clients.ValidHost(local.String()) {
		return scheme + "://" + local.String()
	}
	return scheme + "://localhost"
}
