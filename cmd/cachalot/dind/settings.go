package dind

import (
	"errors"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/cachalot-registry/cachalot/proxy/clients"
)

// VariableError is about a variable's value.
type VariableError struct {
	Name   string // of the variable
	Reason string // what is wrong, or what to write
}

func (e *VariableError) Error() string { return e.Name + ": " + e.Reason }

const (
	mirrorVariable = "CACHALOT_MIRROR"
	directVariable = "CACHALOT_DIRECT"
	caVariable     = "CACHALOT_CA"
	keepVariable   = "CACHALOT_KEEP_DRIVER"
)

const hub = "docker.io"

// settings are the values of the variables.
type settings struct {
	mirror     *url.URL // without a slash at its end
	direct     []direct
	ca         []byte // PEM, checked; nil: none
	keepDriver bool
	odd        []string // a line for each variable of GitLab that cannot be used
}

// direct is a registry that dockerd uses without the mirror.
type direct struct{ name, why string }

// readSettings reads the variables. Its error joins those of type [*VariableError].
func readSettings(in Input) (settings, error) {
	env := environ(in.Env)
	var s settings
	var wrong []error
	bad := func(variable, reason string) { wrong = append(wrong, &VariableError{variable, reason}) }

	if u, err := parseMirror(env.get(mirrorVariable)); err != nil {
		bad(mirrorVariable, err.Error())
	} else {
		s.mirror = u
	}
	for name := range strings.FieldsFuncSeq(env.get(directVariable), func(r rune) bool { return r == ',' || r <= ' ' }) {
		if reason := invalidRegistry(name); reason != "" {
			bad(directVariable, reason)
			continue
		}
		s.add(canonical(name), directVariable)
	}
	s.gitlab(env)
	if value := env.get(caVariable); value != "" {
		pem, err := readAuthority(in.Root, value)
		if err != nil {
			bad(caVariable, err.Error())
		}
		s.ca = pem
	}
	if value := env.get(keepVariable); value != "" {
		keep, err := strconv.ParseBool(value)
		if err != nil {
			bad(keepVariable, strconv.Quote(value)+" is not known; write true or false")
		}
		s.keepDriver = keep
	}
	return s, errors.Join(wrong...)
}

// parseMirror checks a URL as the clients' configurations do.
func parseMirror(value string) (*url.URL, error) {
	value = strings.TrimSpace(value)
	_, err := clientFile("containerd", clients.Settings{Mirror: value, Registries: []string{hub}, All: true}, "hosts.toml")
	if wrong, ok := errors.AsType[*clients.SettingError](err); ok {
		return nil, errors.New(wrong.Reason)
	}
	if err != nil {
		return nil, err
	}
	u, err := url.Parse(value)
	if err != nil {
		return nil, err
	}
	u.Path = strings.TrimRight(u.Path, "/")
	return u, nil
}

// invalidRegistry returns why a name is not the name of a registry, as images have it; "": it
// is one.
func invalidRegistry(name string) string {
	_, err := clientFile("containerd", clients.Settings{Mirror: "http://mirror.invalid", Registries: []string{name}}, "hosts.toml")
	if err == nil {
		return ""
	}
	if wrong, ok := errors.AsType[*clients.SettingError](err); ok {
		return wrong.Reason
	}
	return err.Error()
}

// canonical returns docker.io for the other names of Docker Hub.
func canonical(name string) string {
	if slices.Contains([]string{"index.docker.io", "registry-1.docker.io"}, name) {
		return hub
	}
	return name
}

func (s *settings) add(name, why string) {
	if !s.isDirect(name) {
		s.direct = append(s.direct, direct{name, why})
	}
}

func (s *settings) isDirect(name string) bool {
	return slices.ContainsFunc(s.direct, func(d direct) bool { return d.name == name })
}

// gitlab adds GitLab's own registries: they need the job's credential, which dockerd does not
// send to a mirror. The variables are not ours, so a wrong value must not stop a job.
func (s *settings) gitlab(env environ) {
	for _, variable := range []string{"CI_REGISTRY", "CI_DEPENDENCY_PROXY_SERVER"} {
		value := strings.ToLower(strings.TrimSpace(env.get(variable)))
		if value == "" {
			continue
		}
		name := value
		if _, rest, ok := strings.Cut(value, "://"); ok {
			name = rest
		}
		name, _, _ = strings.Cut(name, "/")
		switch {
		case canonical(name) == hub:
			// Some jobs set CI_REGISTRY to Docker Hub for docker login. The mirror still serves
			// it.
		case invalidRegistry(name) != "":
			s.odd = append(s.odd, variable+" is not used: "+invalidRegistry(name))
		default:
			s.add(name, variable)
			// GitLab adds :443, and images are named with it and without.
			if host, ok := strings.CutSuffix(name, ":443"); ok {
				s.add(host, variable)
			}
		}
	}
}
