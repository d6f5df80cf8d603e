// Package config reads a configuration file: defaults, then strict decoding, then checks.
// Its errors have lines, and say what to write instead. It returns the configurations of
// storage, upstream and proxy.
package config

import (
	"crypto/tls"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cachalot-registry/cachalot/bounds"
	"github.com/cachalot-registry/cachalot/proxy"
	"github.com/cachalot-registry/cachalot/storage"
	"github.com/cachalot-registry/cachalot/upstream"
)

// Config is the configuration file. config.yml at the root of the repository
// shows every key with its default.
type Config struct {
	// Listen is where clients reach the mirror: "host:port" or ":port".
	Listen string `yaml:"listen"`
	// MaxConnections limits the open connections of clients. At the limit, idle ones are
	// closed for new ones; if none is idle, new ones wait.
	MaxConnections int `yaml:"max_connections"`
	// MaxChecks limits the concurrent requests to registries for manifests, tags and lists.
	MaxChecks int `yaml:"max_checks"`
	// FairShare is the largest part of MaxChecks and Storage.MaxFills that one registry
	// uses. The same part of these and of MaxConnections is reserved for clients that use
	// little, and of a registry's part for its repositories that use little.
	FairShare storage.Size `yaml:"fair_share"`
	// SendTimeout is how long a client may read nothing of its response; 0: no limit.
	SendTimeout time.Duration `yaml:"send_timeout"`
	// DrainDelay is how long the mirror accepts connections after SIGTERM, while /readyz says
	// that it is not ready.
	DrainDelay time.Duration `yaml:"drain_delay"`
	// ShutdownTimeout limits the time for running responses to end after DrainDelay.
	ShutdownTimeout time.Duration `yaml:"shutdown_timeout"`
	// Hosts are the names of the mirror, without a port, besides the upstreams' hosts.
	// Requests for other names are refused. "*.example.com" is all names below it. Empty:
	// any name.
	Hosts []string `yaml:"hosts"`
	// DefaultUpstream is the registry for requests that name none.
	DefaultUpstream string `yaml:"default_upstream"`
	// TrustedProxies are load balancers in front of the mirror: ranges as in AllowAddresses.
	TrustedProxies []string `yaml:"trusted_proxies"`
	// ForwardedHeader is the header in which they name the client: "X-Forwarded-For" or
	// "Forwarded".
	ForwardedHeader string `yaml:"forwarded_header"`
	// UnlistedUpstreams is "deny" or "allow", for registries that are not in Upstreams.
	UnlistedUpstreams string `yaml:"unlisted_upstreams"`

	TLS      TLS               `yaml:"tls"`
	Admin    Admin             `yaml:"admin"`
	Log      Log               `yaml:"log"`
	Storage  Storage           `yaml:"storage"`
	Tracing  Tracing           `yaml:"tracing"`
	Tags     Tags              `yaml:"tags"`
	Timeouts upstream.Timeouts `yaml:"timeouts"`

	// Upstreams are the registries to mirror, by the name that clients use. Absent: the
	// well-known public ones.
	Upstreams map[string]Upstream `yaml:"upstreams"`

	// Rules are settings for some images. For each setting, the first rule that matches and
	// has it applies.
	Rules []proxy.Rule `yaml:"rules"`
}

// TLS is for the clients' listener. Without it the listener is plain HTTP.
type TLS struct {
	// Certificate is a PEM file with the certificate, then those of its issuers.
	Certificate string `yaml:"certificate"`
	// Key is a PEM file with its key. Both files are reloaded when they change.
	Key string `yaml:"key"`
}

// On reports whether the clients' listener uses TLS.
func (c TLS) On() bool { return c != TLS{} }

// Pair reads the certificate and its key. Its errors say what to write.
func (c TLS) Pair() (tls.Certificate, error) {
	for _, name := range []string{c.Certificate, c.Key} {
		if _, err := os.Stat(name); err != nil {
			return tls.Certificate{}, fmt.Errorf("%w; write the path of a file that cachalot can read", err)
		}
	}
	pair, err := tls.LoadX509KeyPair(c.Certificate, c.Key)
	if err != nil {
		return pair, fmt.Errorf("%w; write a PEM file with the certificate, then those of its issuers, and in tls.key one with its key", err)
	}
	return pair, nil
}

// Scheme returns the scheme of the mirror's URLs.
func (c Config) Scheme() string {
	if c.TLS.On() {
		return "https"
	}
	return "http"
}

type Admin struct {
	// Listen is where metrics, health checks, profiles and the admin API are.
	Listen string `yaml:"listen"`
	// Hosts are names of the listener, besides addresses and names within a cluster: see
	// admin.Config.
	Hosts []string `yaml:"hosts"`
	// Token is required for changes by the admin API and for profiles. Empty: these
	// requests must come from the host itself, and Listen must be a loopback address.
	Token string `yaml:"token"`
	// TokenFile has the token instead. It is read for each such request, so that it can be
	// changed.
	TokenFile string `yaml:"token_file"`
}

type Log struct {
	Level  string `yaml:"level"`  // debug, info, warn or error
	Format string `yaml:"format"` // text or json
}

type Tracing struct {
	// Endpoint is a collector's URL for OTLP over HTTP. Empty: that of the environment, or
	// none.
	Endpoint string `yaml:"endpoint"`
	// SampleRatio is the share of new traces that are recorded, 0 to 1. A client's trace is
	// recorded if its traceparent says so.
	SampleRatio float64 `yaml:"sample_ratio"`
}

type Storage struct {
	// Path is the cache's folder. Empty: see defaultStoragePath.
	Path string `yaml:"path"`
	// MaxSize limits the blobs on disk; 0: only MinFree limits them.
	MaxSize storage.Size `yaml:"max_size"`
	// MinFree is the space on the file system that must stay free.
	MinFree storage.Size `yaml:"min_free"`
	// MaxIndex limits the index: tags and lists together, and links; 0: no limit.
	MaxIndex storage.Size `yaml:"max_index"`
	// HighMark is the share of MaxSize above which eviction begins, and LowMark the share
	// at which it ends. For MinFree they apply as the same distance.
	HighMark storage.Size `yaml:"high_mark"`
	LowMark  storage.Size `yaml:"low_mark"`
	// MaxFills limits the concurrent downloads.
	MaxFills int `yaml:"max_fills"`
	// ScrubEvery is the period in which every blob is read and checked; 0: never.
	ScrubEvery time.Duration `yaml:"scrub_every"`
}

type Tags struct {
	// FreshFor is how long a tag is served without asking its registry.
	FreshFor time.Duration `yaml:"fresh_for"`
	// MaxStale is how long a tag is served while its registry fails.
	MaxStale time.Duration `yaml:"max_stale"`
	// RevalidateTimeout is how long a client waits for the check of a tag.
	RevalidateTimeout time.Duration `yaml:"revalidate_timeout"`
	// NegativeFor is how long a registry's "not found" is cached.
	NegativeFor time.Duration `yaml:"negative_for"`
}

type Upstream struct {
	// URL is the registry's base URL. Absent for a well-known name: its public one.
	URL string `yaml:"url"`
	// URLs are tried in order. They replace URL.
	URLs []string `yaml:"urls"`
	// Aliases are other names that clients may use for the registry.
	Aliases []string `yaml:"aliases"`
	// Hosts are names of the mirror under which it serves this registry only.
	Hosts    []string `yaml:"hosts"`
	Username string   `yaml:"username"`
	Password string   `yaml:"password"`
	// PasswordFile is read again for each token, so that a secret can be rotated.
	PasswordFile string `yaml:"password_file"`
	DockerConfig string `yaml:"docker_config"`
	Keychain     string `yaml:"keychain"`
	// Accounts are several accounts. They replace the five keys above.
	Accounts []upstream.Account `yaml:"accounts"`
	// CAFile has PEM certificates that are trusted besides the system's.
	CAFile string `yaml:"ca_file"`
	// TokenRealms are hosts, besides the registry's own, that may get the credential.
	TokenRealms []string `yaml:"token_realms"`
	// AllowAddresses are private or similar ranges in which the registry's hosts may be:
	// "10.0.0.0/8", or one address.
	AllowAddresses []string `yaml:"allow_addresses"`
	// AllowHTTPRedirects allows an https registry to redirect to http for content by digest.
	AllowHTTPRedirects bool `yaml:"allow_http_redirects"`
	// RaceAfter is how long one of several URLs may take to begin its response for content by
	// digest before another one gets the same request; 0: none does.
	RaceAfter time.Duration `yaml:"race_after"`
	// MaxConnections limits the connections to each of the registry's hosts. No repository
	// uses all of them.
	MaxConnections int `yaml:"max_connections"`
}

// newUpstream returns an upstream with the default of each key.
func newUpstream() Upstream {
	return Upstream{RaceAfter: time.Second, MaxConnections: 64}
}

func Defaults() Config {
	return Config{
		Listen:            ":5000",
		MaxConnections:    10_000,
		MaxChecks:         proxy.DefaultChecks,
		FairShare:         storage.Size{Percent: 100 * bounds.DefaultShare},
		SendTimeout:       time.Minute,
		ShutdownTimeout:   30 * time.Second,
		DefaultUpstream:   "docker.io",
		ForwardedHeader:   "X-Forwarded-For",
		UnlistedUpstreams: "deny",
		Admin:             Admin{Listen: "127.0.0.1:5001"},
		Log:               Log{Level: "info", Format: "text"},
		Tracing:           Tracing{SampleRatio: 1},
		Storage: Storage{
			MaxSize:    storage.Size{Bytes: 50 << 30},
			MinFree:    storage.Size{Percent: 5},
			MaxIndex:   storage.Size{Bytes: 256 << 20},
			HighMark:   storage.Size{Percent: 98},
			LowMark:    storage.Size{Percent: 95},
			MaxFills:   256,
			ScrubEvery: 7 * 24 * time.Hour,
		},
		Tags: Tags{
			FreshFor:          time.Minute,
			MaxStale:          30 * 24 * time.Hour,
			RevalidateTimeout: 2 * time.Second,
			NegativeFor:       10 * time.Second,
		},
		Timeouts: upstream.Timeouts{
			Dial:           5 * time.Second,
			TLSHandshake:   10 * time.Second,
			ResponseHeader: 20 * time.Second,
			Progress:       30 * time.Second,
		},
		Upstreams: WellKnown(),
	}
}

// WellKnown returns the public registries that need no configuration.
func WellKnown() map[string]Upstream {
	known := map[string]Upstream{}
	for _, w := range upstream.WellKnown() {
		u := newUpstream()
		u.Aliases, u.TokenRealms = aliases(w.Name), w.TokenRealms
		if len(w.URLs) == 1 {
			u.URL = w.URLs[0]
		} else {
			u.URLs = w.URLs
		}
		known[w.Name] = u
	}
	return known
}

// aliases returns the other names that people and tools use for a well-known registry.
func aliases(name string) []string {
	if name == "docker.io" {
		return []string{"dockerhub", "index.docker.io", "registry-1.docker.io"}
	}
	return nil
}

// completed returns u with the values of k, the well-known registry of the same name, for keys
// that u does not have. It adds TokenRealms only if u has the public URLs: for other URLs they
// must be configured, because these hosts may get the password.
func (u Upstream) completed(k Upstream) Upstream {
	if len(u.addresses()) == 0 {
		u.URL, u.URLs = k.URL, k.URLs
	}
	if u.Aliases == nil { // an empty list means: no aliases
		u.Aliases = k.Aliases
	}
	if len(u.TokenRealms) == 0 && slices.Equal(u.addresses(), k.addresses()) {
		u.TokenRealms = k.TokenRealms
	}
	return u
}

func (u Upstream) addresses() []string {
	if u.URL != "" {
		return []string{u.URL}
	}
	return u.URLs
}

// UpstreamConfig returns the configuration of a listed registry.
func (c Config) UpstreamConfig(name string) upstream.Config {
	u := c.Upstreams[name]
	return upstream.Config{
		Name:           name,
		URLs:           u.addresses(),
		Accounts:       u.accounts(),
		CAFile:         u.CAFile,
		TokenRealms:    u.TokenRealms,
		AllowAddresses: AddressRanges(u.AllowAddresses),

		AllowHTTPRedirects: u.AllowHTTPRedirects,

		Private:        !slices.Equal(u.addresses(), WellKnown()[name].addresses()),
		RaceAfter:      u.RaceAfter,
		MaxConnections: u.MaxConnections,
		Timeouts:       c.Timeouts,
	}
}

// AddressRanges parses addresses and ranges that validate has checked.
func AddressRanges(list []string) []netip.Prefix {
	var ranges []netip.Prefix
	for _, s := range list {
		if p, err := addressRange(s); err == nil { // validate reports the others
			ranges = append(ranges, p)
		}
	}
	return ranges
}

// UnlistedConfig returns the configuration of a registry that only a client has named. It has
// no settings of a configured registry, not even of one with nearly the same name.
func (c Config) UnlistedConfig(name string) upstream.Config {
	return upstream.Config{
		Name:           name,
		URLs:           []string{"https://" + name},
		Unlisted:       true,
		MaxConnections: newUpstream().MaxConnections,
		Timeouts:       c.Timeouts,
	}
}

// ProxyConfig returns the configuration of the data plane. The server adds Tracer, Memory and
// Unlisted.
func (c Config) ProxyConfig() proxy.Config {
	return proxy.Config{
		DefaultUpstream:   c.DefaultUpstream,
		FreshFor:          c.Tags.FreshFor,
		MaxStale:          c.Tags.MaxStale,
		RevalidateTimeout: c.Tags.RevalidateTimeout,
		NegativeFor:       c.Tags.NegativeFor,
		TrustedProxies:    AddressRanges(c.TrustedProxies),
		ForwardedHeader:   c.ForwardedHeader,
		MaxChecks:         c.MaxChecks,
		Share:             c.FairShare.Percent / 100,
		Rules:             c.Rules,
		Hosts:             c.Hosts,
	}
}

// Listed returns a function that reports whether a registry is configured.
func (c Config) Listed() func(name string) bool {
	names := maps.Clone(c.Upstreams)
	return func(name string) bool { _, ok := names[name]; return ok }
}

// StorageConfig returns the configuration of the store. It fails if no folder is configured and
// no default folder is found.
func (c Config) StorageConfig() (storage.Config, error) {
	s := storage.Config{
		Path:       c.Storage.Path,
		MaxSize:    c.Storage.MaxSize,
		MinFree:    c.Storage.MinFree,
		MaxIndex:   c.Storage.MaxIndex.Bytes,
		Listed:     c.Listed(),
		HighMark:   c.Storage.HighMark.Percent,
		LowMark:    c.Storage.LowMark.Percent,
		MaxFills:   c.Storage.MaxFills,
		Share:      c.FairShare.Percent / 100,
		ScrubEvery: c.Storage.ScrubEvery,
	}
	if s.Path != "" {
		return s, nil
	}
	var err error
	s.Path, err = defaultStoragePath()
	return s, err
}

// SystemStoragePath is the cache's folder if none is configured and this user may write there.
const SystemStoragePath = "/var/lib/cachalot"

// defaultStoragePath returns the system's folder if this user may write there, as a service
// may; otherwise the user's own cache folder.
func defaultStoragePath() (string, error) {
	if os.Geteuid() == 0 || unix.Access(SystemStoragePath, unix.W_OK) == nil {
		return SystemStoragePath, nil
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("no folder for the cache: %s is not writable and the user has no home; set storage.path", SystemStoragePath)
	}
	return filepath.Join(cache, "cachalot"), nil
}
