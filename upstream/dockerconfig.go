package upstream

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/url"
	"os/exec"
	"slices"
	"strings"

	dockerconfig "github.com/docker/cli/cli/config"
	"github.com/docker/cli/cli/config/configfile"
	dockercredentials "github.com/docker/cli/cli/config/credentials"
	"github.com/google/go-containerregistry/pkg/authn"
)

// newDockerConfig returns an asker that reads the credential for base from a docker
// config.json each time. Whether the file's helper is in PATH is checked now: a file that
// was copied from a desktop may name one that is not installed here.
func newDockerConfig(file string, base *url.URL) (asker, error) {
	c, err := readDockerConfig(file)
	if err != nil {
		return nil, err
	}
	names := dockerNames(base)
	if helper, server := helperFor(c, names); helper != "" {
		if _, err := exec.LookPath(helperPrefix + helper); err != nil {
			return nil, fmt.Errorf("%s uses a program for %s: %w; install it, or write the credential under auths", file, server, err)
		}
	}
	return func(ctx context.Context) (granted, error) {
		c, err := readDockerConfig(file)
		if err != nil {
			return granted{}, err
		}
		var found authn.AuthConfig
		if helper, server := helperFor(c, names); helper != "" {
			found, err = askHelper(ctx, helper, server)
		} else {
			found = entryFor(c, names, base.Scheme)
		}
		return granted{AuthConfig: found}, err
	}, nil
}

// maxDockerConfig is far above any list of registries.
const maxDockerConfig = 1 << 20

func readDockerConfig(file string) (*configfile.ConfigFile, error) {
	b, err := ReadSecret(file, maxDockerConfig)
	if err != nil {
		return nil, err
	}
	c, err := parseDockerConfig(b)
	if err != nil {
		return nil, fmt.Errorf("%s is not a docker config.json: %w", file, err)
	}
	return c, nil
}

// parseDockerConfig parses b. Its errors do not contain those of the decoders, which quote
// the content.
func parseDockerConfig(b []byte) (*configfile.ConfigFile, error) {
	c, err := dockerconfig.LoadFromReader(bytes.NewReader(b))
	syntax, isSyntax := errors.AsType[*json.SyntaxError](err)
	shape, isShape := errors.AsType[*json.UnmarshalTypeError](err)
	switch {
	case len(bytes.TrimSpace(b)) == 0:
		return nil, errors.New("it is empty")
	case isSyntax:
		return nil, fmt.Errorf("not JSON at byte %d", syntax.Offset)
	case isShape:
		return nil, fmt.Errorf("a value of the wrong type at byte %d", shape.Offset)
	case errors.Is(err, io.ErrUnexpectedEOF):
		return nil, errors.New("the end of the file is missing")
	case err != nil:
		return nil, errors.New("an auth is not the base64 of user:password")
	}
	for _, helper := range append(slices.Collect(maps.Values(c.CredentialHelpers)), c.CredentialsStore) {
		if !isHelper(helper) {
			return nil, fmt.Errorf("%q is not the name of a credential helper: write NAME for the program docker-credential-NAME", printable(helper, 64))
		}
	}
	return c, nil
}

// isHelper reports whether name can be the name of a helper in PATH, and not a path.
func isHelper(name string) bool {
	return strings.IndexFunc(name, func(c rune) bool {
		return (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && !strings.ContainsRune("._-", c)
	}) < 0
}

// dockerHub is what docker calls Docker Hub in its config.json.
const dockerHub = "https://index.docker.io/v1/"

// dockerNames returns the names for base in a config.json, docker's own first. docker uses
// the host and port of the image names, which may contain the scheme's default port or not.
func dockerNames(base *url.URL) []string {
	host, withPort := bareHost(base.Hostname()), hostPort(base)
	hub := []string{"index.docker.io", "docker.io", "registry-1.docker.io"}
	if slices.Contains(hub, host) && base.Scheme == "https" && strings.HasSuffix(withPort, ":443") {
		return append([]string{dockerHub}, hub...)
	}
	names := []string{strings.ToLower(base.Host)}
	switch {
	case base.Port() == "":
		names = append(names, withPort, host) // an IPv6 host has no brackets here
	case withPort == hostPort(&url.URL{Scheme: base.Scheme, Host: base.Hostname()}):
		names = append(names, host)
	}
	return names
}

// helperFor returns the helper to run and the server to ask it for; no helper ("") if the
// credential is in the file itself. An empty helper for a host means that the store for all
// hosts is not used for it.
func helperFor(c *configfile.ConfigFile, names []string) (helper, server string) {
	for _, name := range names {
		if helper, ok := c.CredentialHelpers[name]; ok {
			return helper, name
		}
	}
	return c.CredentialsStore, names[0]
}

// entryFor returns the entry of the first of names that has one: under the name itself, or
// else under a URL with that host, preferably of the same scheme.
func entryFor(c *configfile.ConfigFile, names []string, scheme string) authn.AuthConfig {
	keys := slices.Sorted(maps.Keys(c.AuthConfigs))
	for _, name := range names {
		for _, fits := range []func(key string) bool{
			func(key string) bool { return key == name },
			func(key string) bool { return strings.HasPrefix(key, scheme+"://") && dockerHost(key) == name },
			func(key string) bool { return dockerHost(key) == name },
		} {
			if i := slices.IndexFunc(keys, fits); i >= 0 {
				e := c.AuthConfigs[keys[i]]
				return authn.AuthConfig{Username: e.Username, Password: e.Password, IdentityToken: e.IdentityToken, RegistryToken: e.RegistryToken}
			}
		}
	}
	return authn.AuthConfig{}
}

func dockerHost(key string) string { return strings.ToLower(dockercredentials.ConvertToHostname(key)) }
