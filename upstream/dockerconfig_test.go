package upstream

import (
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/authn"
)

// auths returns a config.json with a user for each key. The user's name is the key.
func auths(keys ...string) string {
	var entries []string
	for _, k := range keys {
		entries = append(entries, fmt.Sprintf("%q: {%q: %q}", k, "auth", base64.StdEncoding.EncodeToString([]byte(userFor(k)+":"+canary))))
	}
	return `{"auths": {` + strings.Join(entries, ", ") + `}}`
}

func userFor(key string) string { return strings.ReplaceAll(key, ":", "!") }

func dockerAccount(t *testing.T, content string) (Account, string) {
	t.Helper()
	file := write(t, filepath.Join(t.TempDir(), "config.json"), content)
	return Account{DockerConfig: file}, file
}

func TestDockerConfigKeys(t *testing.T) {
	t.Parallel()
	const hub = "https://index.docker.io/v1/"
	for _, tc := range []struct {
		name, base string
		keys       []string
		want       string // the key whose entry is taken, "": none
	}{
		{"host", "https://r.test", []string{"r.test"}, "r.test"},
		{"any case", "https://R.Test", []string{"r.tEST"}, "r.tEST"},
		{"another host", "https://r.test", []string{"s.test", "r.test.evil.test", "xr.test", "test"}, ""},
		{"subdomain", "https://a.r.test", []string{"r.test"}, ""},
		{"port", "https://r.test:5000", []string{"r.test", "r.test:5000"}, "r.test:5000"},
		{"another port", "https://r.test:5000", []string{"r.test", "r.test:443", "https://r.test:5001/v2/"}, ""},
		{"port of the scheme in the key", "https://r.test", []string{"r.test:443"}, "r.test:443"},
		{"port of the scheme in the URL", "https://r.test:443", []string{"r.test"}, "r.test"},
		{"port of the scheme, as written first", "https://r.test:443", []string{"r.test", "r.test:443"}, "r.test:443"},
		{"port of http", "http://r.test", []string{"r.test:443", "r.test:80"}, "r.test:80"},
		{"https://", "https://r.test", []string{"https://r.test"}, "https://r.test"},
		{"http://", "http://r.test:5000", []string{"http://r.test:5000"}, "http://r.test:5000"},
		{"legacy path", "https://r.test", []string{"https://r.test/v1/"}, "https://r.test/v1/"},
		{"path alone", "https://r.test", []string{"r.test/some/path"}, "r.test/some/path"},
		{"host before path", "https://r.test", []string{"https://r.test", "r.test/a", "r.test"}, "r.test"},
		{"same scheme before another", "https://r.test", []string{"http://r.test", "https://r.test/v2/"}, "https://r.test/v2/"},
		{"another scheme, as docker does", "http://r.test", []string{"https://r.test/v1/"}, "https://r.test/v1/"},
		{"first of several, always the same", "https://r.test", []string{"r.test/b", "r.test/a"}, "r.test/a"},
		{"path in the URL", "https://r.test/mirror", []string{"r.test"}, "r.test"},
		{"IPv6", "https://[::1]:5000", []string{"https://[::1]:5000/"}, "https://[::1]:5000/"},
		{"IPv6 without a port", "https://[::1]", []string{"https://[::1]/"}, "https://[::1]/"},
		{"Docker Hub", "https://registry-1.docker.io", []string{"docker.io", hub, "registry-1.docker.io"}, hub},
		{"Docker Hub, with port", "https://registry-1.docker.io:443", []string{hub}, hub},
		{"Docker Hub by index.docker.io", "https://index.docker.io", []string{hub}, hub},
		{"Docker Hub by docker.io", "https://docker.io", []string{hub}, hub},
		{"Docker Hub under v2", "https://registry-1.docker.io", []string{"https://index.docker.io/v2/"}, "https://index.docker.io/v2/"},
		{"Docker Hub as podman writes it", "https://registry-1.docker.io", []string{"docker.io"}, "docker.io"},
		{"Docker Hub's credential over http", "http://registry-1.docker.io", []string{hub, "docker.io"}, ""},
		{"Docker Hub's credential at another port", "https://docker.io:8443", []string{hub, "docker.io"}, ""},
		{"Docker Hub's credential for a mirror", "https://mirror.test", []string{hub, "docker.io"}, ""},
		{"no entry", "https://r.test", nil, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			a, _ := dockerAccount(t, auths(tc.keys...))
			var want authn.AuthConfig
			if tc.want != "" {
				want = authn.AuthConfig{Username: userFor(tc.want), Password: canary}
			}
			wantGot(t, sourceOf(t, a, tc.base), want)
		})
	}
}

func TestDockerConfigEntry(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name, entry string
		want        authn.AuthConfig
	}{
		{"auth", `{"auth": "` + base64.StdEncoding.EncodeToString([]byte("a:b:c")) + `"}`, authn.AuthConfig{Username: "a", Password: "b:c"}},
		{"username and password", `{"username": "a", "password": "b", "email": "x"}`, authn.AuthConfig{Username: "a", Password: "b"}},
		{"identitytoken", `{"identitytoken": "a"}`, authn.AuthConfig{IdentityToken: "a"}},
		{"registrytoken", `{"registrytoken": "a"}`, authn.AuthConfig{RegistryToken: "a"}},
		{"empty, as docker marks what a helper has", `{}`, authn.AuthConfig{}},
		{"null", `null`, authn.AuthConfig{}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			a, _ := dockerAccount(t, `{"auths": {"r.test": `+tc.entry+`}, "credHelpers": {"s.test": "none"}, "psFormat": "x"}`)
			wantGot(t, sourceOf(t, a, "https://r.test"), tc.want)
		})
	}
}

// TestDockerConfigAgain: the file is read each time, so that it can be replaced.
func TestDockerConfigAgain(t *testing.T) {
	t.Parallel()
	a, file := dockerAccount(t, auths("s.test"))
	c := sourceOf(t, a, "https://r.test")
	wantGot(t, c, authn.AuthConfig{})
	write(t, file, auths("r.test"))
	wantGot(t, c, authn.AuthConfig{Username: "r.test", Password: canary})
	write(t, file, `{"auths": {"r.test": {"password": "`+canary+`"`)
	wantFailed(t, c, file, "the end of the file is missing")
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	wantFailed(t, c, "cannot be read: ")
	write(t, file, auths("https://r.test"))
	wantGot(t, c, authn.AuthConfig{Username: "https!//r.test", Password: canary})
}

// TestDockerConfigEnvironment: only the file is used, not the environment.
func TestDockerConfigEnvironment(t *testing.T) {
	home := t.TempDir()
	if err := os.Mkdir(filepath.Join(home, ".docker"), 0o700); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(home, ".docker", "config.json"), auths("r.test"))
	t.Setenv("HOME", home)
	t.Setenv("DOCKER_CONFIG", filepath.Join(home, ".docker"))
	t.Setenv("DOCKER_AUTH_CONFIG", auths("r.test"))
	t.Setenv("REGISTRY_AUTH_FILE", filepath.Join(home, ".docker", "config.json"))
	a, _ := dockerAccount(t, "{}")
	wantGot(t, sourceOf(t, a, "https://r.test"), authn.AuthConfig{})
}

func TestDockerConfigRefused(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct{ name, content, want string }{
		{"empty", " \n", "it is empty"},
		{"not JSON", canary, "not JSON at byte 1"},
		{"YAML", "auths:\n  r.test:\n    password: " + canary, "not JSON at byte 1"},
		{"cut off", `{"auths": {"r.test": {"password": "` + canary, "the end of the file is missing"},
		{"a list", `["` + canary + `"]`, "a value of the wrong type at byte 1"},
		{"a text for the entry", `{"auths": {"r.test": "` + canary + `"}}`, "a value of the wrong type"},
		{"a number for the password", `{"auths": {"r.test": {"password": 1}}}`, "a value of the wrong type"},
		{"no base64", `{"auths": {"r.test": {"auth": "` + canary + `"}}}`, "not the base64 of user:password"},
		{"no colon", `{"auths": {"r.test": {"auth": "` + base64.StdEncoding.EncodeToString([]byte(canary)) + `"}}}`, "not the base64 of user:password"},
		{"a path as helper", `{"credHelpers": {"r.test": "../../bin/sh"}}`, `"../../bin/sh" is not the name of a credential helper`},
		{"a path as store", `{"credsStore": "/bin/sh"}`, `"/bin/sh" is not the name of a credential helper`},
		{"a space in a helper", `{"credsStore": "a b"}`, `"a b" is not the name`},
		{"a helper that is not here", `{"credsStore": "cachalot-none"}`, "docker-credential-cachalot-none"},
		{"too long", `{"a": "` + strings.Repeat("x", maxDockerConfig) + `"}`, "is longer than"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			a, _ := dockerAccount(t, tc.content)
			_, err := trySource(t, a, "r.test", "https://r.test", nil)
			wantTold(t, err, tc.want, a.DockerConfig)
		})
	}
}

func FuzzDockerConfig(f *testing.F) {
	f.Add(auths("r.test"), "https://r.test")
	f.Add(auths("https://r.test/v1/", "r.test:443"), "https://R.test:443")
	f.Add(auths("https://index.docker.io/v1/"), "https://docker.io")
	f.Add(`{"credHelpers": {"r.test": "a"}, "credsStore": "b/c"}`, "http://r.test:80")
	f.Add(`{"auths": null}`, "https://[::1]")
	f.Add(`{"auths": {"r.test": {"auth": "AA=="}}}`, "https://r.test")
	f.Add(`{"auths": {"": {"auth": "YTpi"}, "https://": {}}}`, "https://a")
	for _, wrong := range []string{"", "x", "0", `{"auths": {`, `{"auths": {"r.test": {"auth": "x"}}}`, `{"credsStore": "a/b"}`} { // one for each error
		f.Add(wrong, "https://r.test")
	}
	told := regexp.MustCompile(`^(it is empty|not JSON at byte [0-9]+|a value of the wrong type at byte [0-9]+|the end of the file is missing|` +
		`an auth is not the base64 of user:password|".*" is not the name of a credential helper: write NAME for the program docker-credential-NAME)$`)
	f.Fuzz(func(t *testing.T, content, base string) {
		c, err := parseDockerConfig([]byte(content))
		if err != nil {
			if !told.MatchString(err.Error()) {
				t.Errorf("%q may quote the file", err)
			}
			return
		}
		u, err := parseBase(base)
		if err != nil {
			return
		}
		names := dockerNames(u)
		if helper, server := helperFor(c, names); strings.ContainsAny(helper, "/\\\x00") || server == "" {
			t.Errorf("would run %q for %q", helper, server)
		}
		found := entryFor(c, names, u.Scheme)
		for key := range c.AuthConfigs {
			if h := dockerHost(key); h != bareHost(u.Hostname()) && h != strings.ToLower(u.Host) && h != hostPort(u) && names[0] != dockerHub {
				delete(c.AuthConfigs, key) // another host's entry cannot be the one
			}
		}
		if again := entryFor(c, names, u.Scheme); again != found {
			t.Errorf("%s is shown %+v", base, found)
		}
	})
}
