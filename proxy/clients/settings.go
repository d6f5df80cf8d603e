package clients

import (
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/cachalot-registry/cachalot/hostport"
)

// Settings are what a client's configuration is made of.
type Settings struct {
	Mirror     string   // the mirror's URL, http or https, without /v2
	CAFile     string   // on the client, certificates (PEM) for an https mirror; "": the system's
	CA         []byte   // what is in CAFile, for the client that has no files
	Registries []string // by the names that images have
	All        bool     // whatever registry else a client asks for is the mirror's too
	Default    string   // the registry of requests that name none; "" is docker.io
}

// SettingError says what is wrong in [Settings].
type SettingError struct {
	Setting string // mirror, ca or registry, as the command's flags
	Reason  string // and what to write
}

func (e *SettingError) Error() string { return e.Setting + ": " + e.Reason }

// view is Settings checked, in the words of the templates. Nothing in it has
// quotes, line breaks or other control characters.
type view struct {
	Settings

	URL       string // the mirror's, without a slash at its end
	Host      string // of URL, with its port
	Path      string // of URL
	Dir       string // for ca.sh
	Plain     bool   // http
	Referrers bool   // whether hosts.toml is for a client that knows the word
}

var (
	mirrorPathRegexp = regexp.MustCompile(`^(/[a-zA-Z0-9._~-]+)*$`)
	caFileRegexp     = regexp.MustCompile(`^/[a-zA-Z0-9._/@+ -]+$`)
)

func (s Settings) view() (view, error) {
	u, err := url.Parse(s.Mirror)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || !ValidHost(u.Host) {
		return view{}, &SettingError{"mirror", "write the mirror's URL, such as http://cachalot.example:5000"}
	}
	v := view{Settings: s, Host: u.Host, Path: strings.TrimRight(u.Path, "/"), Plain: u.Scheme == "http"}
	v.URL = u.Scheme + "://" + v.Host + v.Path
	switch {
	case u.User != nil || u.RawQuery != "" || u.ForceQuery || u.Fragment != "" || !mirrorPathRegexp.MatchString(v.Path):
		return view{}, &SettingError{"mirror", "write the URL with nothing after host, port and path, such as http://cachalot.example:5000"}
	case v.Path == "/v2" || strings.HasSuffix(v.Path, "/v2"):
		return view{}, &SettingError{"mirror", "clients add /v2 themselves; leave it out"}
	case s.CAFile != "" && v.Plain:
		return view{}, &SettingError{"ca", "an http:// mirror has no certificate; leave it out, or write https://"}
	case s.CAFile != "" && !caFileRegexp.MatchString(s.CAFile):
		return view{}, &SettingError{"ca", "write the full path of a PEM file on the client, in letters, digits, spaces and . _ / @ + -"}
	}
	v.Registries = nil
	for _, name := range s.Registries {
		switch {
		case !ValidRegistry(name):
			return view{}, &SettingError{"registry", strconv.Quote(name[:min(len(name), maxShown)]) + " is not the name of a registry; write one such as quay.io"}
		case name != v.Host && !slices.Contains(v.Registries, name): // a mirror cannot be its own
			v.Registries = append(v.Registries, name)
		}
	}
	if len(v.Registries) == 0 {
		return view{}, &SettingError{"registry", "write the name of a registry other than the mirror, such as docker.io"}
	}
	return v, nil
}

// maxShown bounds what an error repeats of a name.
const maxShown = 255

// ValidRegistry reports whether a configuration can name a registry so: as images do, but
// not by an IPv6 address, which most clients do not take. A word alone is one too.
func ValidRegistry(name string) bool {
	h, ok := hostport.Parse(name)
	return ok && h.InImage() && !h.Is6() && strings.ToLower(name) == name
}

// PathName is a registry's name for clients that put it into the path of an image's
// name, where no colon may be: registry.example.5000.
func PathName(registry string) string { return strings.ReplaceAll(registry, ":", ".") }

// ValidHost reports whether a configuration can name the mirror's host so, with or without
// a port. Some clients do not take a dot at its end.
func ValidHost(s string) bool {
	h, ok := hostport.Parse(s)
	return ok && !h.Rooted
}

// Hub is the mirror's URL for clients that mirror Docker Hub only. It has a path
// where it must: dockerd 20.10 refuses one.
func (v view) Hub() string {
	if v.Default == "" || v.Default == dockerHub {
		return v.URL
	}
	return v.URL + "/" + dockerHub
}

// V2 is the mirror's API.
func (v view) V2() string { return v.URL + "/v2" }

// Below names a registry for clients that put a mirror's path after /v2.
func (v view) Below(registry string) string { return v.Host + "/" + PathName(registry) }

// Map is kaniko's, which knows Docker Hub by another name. It takes what follows
// the mirror's host for an image of another registry if it begins with a name that
// has a dot or colon, as registries' names do; so it begins with the host itself.
func (v view) Map() string {
	host := v.Host
	switch {
	case strings.ContainsAny(host, ".:"):
	case v.Plain:
		host += ":80"
	default:
		host += ":443"
	}
	var pairs []string
	for _, name := range v.Registries {
		from := name
		if name == dockerHub {
			from = "index.docker.io"
		}
		pairs = append(pairs, from+"="+v.Host+"/"+host+"/"+PathName(name))
	}
	return strings.Join(pairs, ";")
}

// atRoot is for clients that put a mirror's path after /v2, where no mirror is.
func (v view) atRoot(program string) error {
	if v.Path != "" {
		return &SettingError{"mirror", program + " puts a path after /v2; write a URL without one"}
	}
	return nil
}
