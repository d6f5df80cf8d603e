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
	CA         []byte   // the content of CAFile, for a client that has no files
	Registries []string // by the names that images have
	All        bool     // the mirror is for all other registries too
	Default    string   // the registry of requests that name none; "" is docker.io
}

// SettingError says what is wrong in [Settings].
type SettingError struct {
	Setting string // mirror, ca or registry, as the command's flags
	Reason  string // and what to write
}

func (e *SettingError) Error() string { return e.Setting + ": " + e.Reason }

// view is the checked Settings, as the templates use them. Nothing in it has quotes, line
// breaks or other control characters.
type view struct {
	Settings

	URL       string // the mirror's, without a slash at its end
	Host      string // of URL, with its port
	Path      string // of URL
	Dir       string // for ca.sh
	Plain     bool   // http
	Referrers bool   // hosts.toml is for a client that knows the capability of that name
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
		case name != v.Host && !slices.Contains(v.Registries, name): // the mirror cannot mirror itself
			v.Registries = append(v.Registries, name)
		}
	}
	if len(v.Registries) == 0 {
		return view{}, &SettingError{"registry", "write the name of a registry other than the mirror, such as docker.io"}
	}
	return v, nil
}

// maxShown bounds how much of a name an error shows.
const maxShown = 255

// ValidRegistry reports whether a configuration can have this name of a registry: a name as in
// images, but no IPv6 address, which most clients do not accept. A word alone is valid too.
func ValidRegistry(name string) bool {
	h, ok := hostport.Parse(name)
	return ok && h.InImage() && !h.Is6() && strings.ToLower(name) == name
}

// PathName returns a registry's name for clients that put it into the path of an image's name,
// which cannot have a colon: registry.example.5000.
func PathName(registry string) string { return strings.ReplaceAll(registry, ":", ".") }

// ValidHost reports whether a configuration can have this host of the mirror, with or without a
// port. A dot at its end is invalid, because some clients do not accept it.
func ValidHost(s string) bool {
	h, ok := hostport.Parse(s)
	return ok && !h.Rooted
}

// Hub returns the mirror's URL for clients that mirror Docker Hub only. It has a path only if
// it must: dockerd 20.10 refuses one.
func (v view) Hub() string {
	if v.Default == "" || v.Default == dockerHub {
		return v.URL
	}
	return v.URL + "/" + dockerHub
}

// V2 returns the URL of the mirror's API.
func (v view) V2() string { return v.URL + "/v2" }

// Below returns a registry's name for clients that put a mirror's path after /v2.
func (v view) Below(registry string) string { return v.Host + "/" + PathName(registry) }

// Map returns the value of kaniko's --registry-map, in which Docker Hub has another name.
// kaniko takes the part after the mirror's host for an image of another registry if its first
// component has a dot or a colon, as registries' names do. So that component is the mirror's
// host itself.
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

// atRoot returns an error if the mirror's URL has a path: for clients that put it after /v2,
// where no mirror is.
func (v view) atRoot(program string) error {
	if v.Path != "" {
		return &SettingError{"mirror", program + " puts a path after /v2; write a URL without one"}
	}
	return nil
}
