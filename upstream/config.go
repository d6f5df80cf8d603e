package upstream

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/cachalot-registry/cachalot/hostport"
)

// Config describes one registry.
type Config struct {
	// Name is the registry's name for clients: "docker.io".
	Name string
	// URLs are the base URLs in the order of requests: mirrors first, the registry itself
	// last, because only a 404 of the last one is final. A path is inserted before /v2; the
	// part after /v2, if the path has one, before the name of each repository.
	URLs []string
	// Accounts are used in turn, and pause when their quota is spent. Their credentials are
	// sent only to the origins of the URLs and to the token realms below. Empty: requests
	// are anonymous.
	Accounts []Account
	// CAFile has PEM certificates that are trusted besides the system's roots.
	CAFile string
	// TokenRealms are hosts, besides the registry's own, that may get the credential: host,
	// or host:port if the port is not the default one of the scheme.
	TokenRealms []string
	// AllowAddresses are private or similar addresses that may be reached. Literal addresses
	// in URLs are allowed without it.
	AllowAddresses []netip.Prefix
	// Private allows private addresses (RFC 1918, 4193, 6598) for the hosts in URLs and
	// TokenRealms, because an operator who writes registry.corp means an internal host.
	Private bool
	// AllowHTTPRedirects allows an https registry to redirect to http for content by digest.
	// Such a request has no credential.
	AllowHTTPRedirects bool
	// Dial, if not nil, makes the connections. The address policy applies only to
	// connections through the machine's network.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// Unlisted: a client chose the name, not the operator. Its URL does not allow an
	// address, its errors show no address, and its metrics have the label UnlistedLabel.
	Unlisted bool
	// RaceAfter is how long one URL may take to begin its answer for content by digest
	// before another URL is asked too. Zero: no other is asked. Tags are never raced,
	// because the URLs may differ on them.
	RaceAfter time.Duration
	// MaxConnections limits the connections to each host. Blob downloads use at most 7/8 of
	// them, so that tags can be checked while they run. No repository uses all of them.
	MaxConnections int
	Timeouts       Timeouts
}

// Account is one of: Username with Password or PasswordFile, DockerConfig, or Keychain.
type Account struct {
	Username string `yaml:"username"`
	Password string `yaml:"password"`
	// PasswordFile is read for each token request, so that a secret can be rotated.
	PasswordFile string `yaml:"password_file"`
	// DockerConfig is the path of a docker config.json with an entry for the URL's host. It
	// may name credential helpers, which must be in PATH.
	DockerConfig string `yaml:"docker_config"`
	// Keychain is "ecr", "google" or "azure": the account of the machine or workload.
	Keychain string `yaml:"keychain"`
}

// key returns the configuration key that says where the credential is.
func (a Account) key() string {
	switch {
	case a.Keychain != "":
		return "keychain"
	case a.DockerConfig != "":
		return "docker_config"
	case a.PasswordFile != "":
		return "password_file"
	default:
		return "username"
	}
}

// Timeouts limit the steps of a request; a whole blob has no limit. Zero is the default:
// 5s, 10s, 20s, 30s.
type Timeouts struct {
	Dial           time.Duration `yaml:"dial"`
	TLSHandshake   time.Duration `yaml:"tls_handshake"`
	ResponseHeader time.Duration `yaml:"response_header"`
	// Progress limits the pauses inside a body, and the time for 16 KiB of it.
	Progress time.Duration `yaml:"progress"`
}

const defaultMaxConnections = 64

// UnlistedLabel is the label of all unlisted registries in the metrics, so that clients
// cannot create label values.
const UnlistedLabel = "unlisted"

func (c Config) label() string {
	if c.Unlisted {
		return UnlistedLabel
	}
	return c.Name
}

func (c Config) withDefaults() Config {
	if c.MaxConnections == 0 {
		c.MaxConnections = defaultMaxConnections
	}
	for _, d := range []struct {
		value *time.Duration
		usual time.Duration
	}{
		{&c.Timeouts.Dial, 5 * time.Second},
		{&c.Timeouts.TLSHandshake, 10 * time.Second},
		{&c.Timeouts.ResponseHeader, 20 * time.Second},
		{&c.Timeouts.Progress, 30 * time.Second},
	} {
		if *d.value == 0 {
			*d.value = d.usual
		}
	}
	return c
}

// KeyError is a wrong value of a configuration key.
type KeyError struct {
	Key string // in full, such as "upstreams.quay.io.url"
	Err error  // what is wrong, and what to write instead
}

func (e *KeyError) Error() string { return e.Key + ": " + e.Err.Error() }

func (e *KeyError) Unwrap() error { return e.Err }

// Validate returns the wrong values. It reads the files of the accounts, no other file, and
// sends no request. Its errors never contain a value that may be a secret.
func (c Config) Validate() (wrong []*KeyError) {
	fail := func(key, format string, args ...any) {
		wrong = append(wrong, &KeyError{key, fmt.Errorf(format, args...)})
	}
	if !hostport.Valid(c.Name) {
		fail("upstreams", "%q is not a registry name such as docker.io or registry.example:5000", c.Name)
	}
	if len(c.URLs) == 0 {
		fail(c.key("url"), "missing; write the registry's base URL, such as https://registry.example")
	}
	for i, u := range c.URLs {
		if _, err := parseBase(u); err != nil {
			fail(c.urlKey(i), "%w", err)
		}
	}
	for i, a := range c.Accounts {
		if key, err := a.validate(); err != nil {
			fail(c.accountKey(i, key), "%w", err)
		}
	}
	for i, h := range c.TokenRealms {
		key := c.key(fmt.Sprintf("token_realms[%d]", i))
		switch {
		case strings.HasPrefix(h, "https://"), strings.HasPrefix(h, "http://"):
			fail(key, "a URL; write the host alone, such as auth.docker.io")
		case !hostport.Valid(h):
			fail(key, "%q is not a host; write one such as auth.docker.io", h)
		}
	}
	for i, p := range c.AllowAddresses {
		if !p.IsValid() {
			fail(c.key(fmt.Sprintf("allow_addresses[%d]", i)), "not a range of addresses, such as 10.0.0.0/8")
		}
	}
	if c.MaxConnections < 0 {
		fail(c.key("max_connections"), "%d is negative; write a number such as %d", c.MaxConnections, defaultMaxConnections)
	}
	if c.RaceAfter < 0 {
		fail(c.key("race_after"), "%s is negative; write a duration such as 1s, or 0 for never", c.RaceAfter)
	}
	for _, d := range []struct {
		key   string
		value time.Duration
	}{
		{"dial", c.Timeouts.Dial},
		{"tls_handshake", c.Timeouts.TLSHandshake},
		{"response_header", c.Timeouts.ResponseHeader},
		{"progress", c.Timeouts.Progress},
	} {
		if d.value < 0 {
			fail("timeouts."+d.key, "%s is negative; write a duration such as 10s", d.value)
		}
	}
	return wrong
}

// key names one of this registry's configuration keys.
func (c Config) key(name string) string { return "upstreams." + c.Name + "." + name }

// urlKey names the key of a URL: the only one is not in a list.
func (c Config) urlKey(i int) string {
	if len(c.URLs) > 1 {
		return c.key(fmt.Sprintf("urls[%d]", i))
	}
	return c.key("url")
}

// accountKey names a key of an account: those of a single account are beside the URL.
func (c Config) accountKey(i int, name string) string {
	if len(c.Accounts) > 1 {
		name = fmt.Sprintf("accounts[%d].%s", i, name)
	}
	return c.key(name)
}

// roots returns the system's certificates and those of CAFile; nil means the
// system's alone.
func (c Config) roots() (*x509.CertPool, error) {
	if c.CAFile == "" {
		return nil, nil
	}
	key := c.key("ca_file")
	pem, err := os.ReadFile(c.CAFile)
	if err != nil {
		return nil, &KeyError{key, err}
	}
	pool, err := x509.SystemCertPool()
	if err != nil {
		pool = x509.NewCertPool() // no system roots, as in a scratch image
	}
	if !pool.AppendCertsFromPEM(pem) {
		return nil, &KeyError{key, fmt.Errorf("%s has no PEM certificate", c.CAFile)}
	}
	return pool, nil
}

// parseBase parses a base URL. Its errors never contain the URL, which may have a
// password.
func parseBase(raw string) (*url.URL, error) {
	u, err := url.Parse(raw)
	switch {
	case err != nil:
		return nil, errors.New("not a URL; write one such as https://registry-1.docker.io")
	case u.User != nil:
		return nil, errors.New("a credential in the URL; write it as username and password")
	case u.Scheme != "http" && u.Scheme != "https":
		return nil, errors.New("not an http or https URL; write one such as https://registry-1.docker.io")
	case u.Host != "" && !hasHost(u):
		return nil, errors.New("a bad host in the URL; write one such as registry.example:5000, in letters, digits, hyphens and dots")
	case u.Host == "":
		return nil, errors.New("no host in the URL; write one such as https://registry-1.docker.io")
	case u.RawQuery != "" || u.ForceQuery || u.Fragment != "":
		return nil, fmt.Errorf("the URL has ? or #; write the address alone, such as https://%s", u.Host)
	}
	for s := range strings.SplitSeq(strings.Trim(u.Path, "/"), "/") {
		if s == "." || s == ".." {
			return nil, errors.New("the URL has . or .. in its path; write the path without them")
		}
	}
	u.Path = strings.TrimRight(u.Path, "/")
	if _, prefix := splitBase(u.Path); strings.HasSuffix(u.Path, "/v2") || strings.Contains(prefix+"/", "/v2/") {
		return nil, errors.New("/v2 at the end of the URL; remove it, because it is added")
	}
	u.RawPath = ""
	return u, nil
}

// splitBase splits the path of a base URL: what comes before /v2, and what is put
// before the name of each repository.
func splitBase(path string) (root, prefix string) {
	root, prefix, found := strings.Cut(path+"/", "/v2/")
	if !found {
		return path, ""
	}
	return root, prefix
}

// hasHost reports whether u has a valid host. An empty port after it is allowed (RFC 3986
// section 3.2.3).
func hasHost(u *url.URL) bool { return hostport.Valid(strings.TrimSuffix(u.Host, ":")) }

// origin is u's scheme, host and port, in one spelling (RFC 6454 section 4).
func origin(u *url.URL) string { return u.Scheme + "://" + hostPort(u) }

// hostPort is u's host and port, the port always written.
func hostPort(u *url.URL) string {
	port := u.Port()
	if port == "" {
		port = "443"
		if u.Scheme == "http" {
			port = "80"
		}
	}
	return net.JoinHostPort(strings.ToLower(u.Hostname()), port)
}

// maxPasswordFile is far above any token or key used as a password.
const maxPasswordFile = 64 << 10

func readPassword(file string) (string, error) {
	b, err := ReadSecret(file, maxPasswordFile)
	if err != nil {
		return "", err
	}
	p := strings.TrimRight(string(b), "\r\n")
	if p == "" {
		return "", fmt.Errorf("%s is empty", file)
	}
	return p, nil
}
