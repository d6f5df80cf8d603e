package config

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/cachalot-registry/cachalot/hostport"
	"github.com/cachalot-registry/cachalot/storage"
	"github.com/cachalot-registry/cachalot/upstream"
)

// complete adds the values of well-known registries that the file leaves out, and makes empty
// lists nil.
func (c *Config) complete() {
	for _, list := range []*[]string{&c.Hosts, &c.Admin.Hosts, &c.TrustedProxies} {
		if len(*list) == 0 {
			*list = nil
		}
	}
	known := WellKnown()
	for name, u := range c.Upstreams {
		if k, ok := known[name]; ok {
			u = u.completed(k)
		}
		for _, list := range []*[]string{&u.URLs, &u.Aliases, &u.Hosts, &u.TokenRealms, &u.AllowAddresses} {
			if len(*list) == 0 {
				*list = nil
			}
		}
		c.Upstreams[name] = u
	}
}

// validate returns the problems of the values, except for keys that already have a problem.
func (c *Config) validate(at positions, already []Problem) []Problem {
	v := validator{at: at, done: map[string]bool{}}
	for _, p := range already {
		v.done[p.key] = true
	}

	v.listen(c.Listen, ":5000", "listen")
	v.listen(c.Admin.Listen, "127.0.0.1:5001", "admin.listen")
	if _, port, err := net.SplitHostPort(c.Listen); err == nil && c.Listen == c.Admin.Listen && port != "0" {
		v.fail("the same address as listen; write another one", "admin.listen", "listen")
	}
	v.hostNames(c.Hosts, "hosts")
	v.hostNames(c.Admin.Hosts, "admin.hosts")
	v.admin(c.Admin)
	v.tls(c.TLS)
	v.atLeastOne(c.MaxConnections, "max_connections")
	v.atLeastOne(c.MaxChecks, "max_checks")
	if c.FairShare.Percent <= 0 || c.FairShare.Percent > 50 {
		v.fail(fmt.Sprintf("%q is out of range; write 1%% to 50%%, such as 25%%", c.FairShare), "fair_share")
	}
	v.addressRanges(c.TrustedProxies, "trusted_proxies")
	v.oneOf(c.ForwardedHeader, "forwarded_header", "X-Forwarded-For", "Forwarded")
	v.oneOf(c.UnlistedUpstreams, "unlisted_upstreams", "deny", "allow")
	v.oneOf(c.Log.Level, "log.level", "debug", "info", "warn", "error")
	v.oneOf(c.Log.Format, "log.format", "text", "json")
	v.tracing(c.Tracing)
	v.storage(c.Storage)
	v.durations(c)
	v.upstreams(c)
	v.rules(c)
	return v.problems
}

type validator struct {
	at       positions
	done     map[string]bool // keys with a problem; each key is reported once
	problems []Problem
}

// fail reports a problem of the first key, at the line of the first of keys that the file has.
func (v *validator) fail(message string, keys ...string) {
	if v.done[keys[0]] {
		return
	}
	v.done[keys[0]] = true
	line, column := v.at.of(keys...)
	v.problems = append(v.problems, Problem{line: line, column: column, key: keys[0], message: message})
}

// below reports whether key, or one below it, has a problem.
func (v *validator) below(key string) bool {
	for k := range v.done {
		if rest, ok := strings.CutPrefix(k, key); ok && (rest == "" || rest[0] == '.' || rest[0] == '[') {
			return true
		}
	}
	return false
}

func (v *validator) listen(address, example, key string) {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		message := fmt.Sprintf("%q is not an address; write host:port or :port, such as %s", address, example)
		if isPort(address) {
			message = fmt.Sprintf("%q has no colon; write :%s", address, address)
		}
		v.fail(message, key)
		return
	}
	if !isPort(port) {
		v.fail(fmt.Sprintf("%q is not a port; write a number up to 65535, such as %s", port, example), key)
		return
	}
	if strings.ContainsAny(host, " /@") {
		v.fail(fmt.Sprintf("%q is not a host; write a name or an IP address, or nothing for every address", host), key)
	}
}

func isPort(s string) bool {
	_, err := strconv.ParseUint(s, 10, 16)
	return err == nil
}

func (v *validator) atLeastOne(n int, key string) {
	if n < 1 {
		v.fail(fmt.Sprintf("%d is too small; write 1 or more", n), key)
	}
}

func (v *validator) oneOf(value, key string, allowed ...string) {
	if !slices.Contains(allowed, value) {
		v.fail(fmt.Sprintf("%q is not known; write one of %s", value, strings.Join(allowed, ", ")), key)
	}
}

// maxKey is far above any private key.
const maxKey = 1 << 20

func (v *validator) tls(c TLS) {
	switch {
	case !c.On():
		return
	case c.Certificate == "":
		v.fail("missing beside tls.key; write the file with the certificate", "tls.certificate", "tls.key", "tls")
		return
	case c.Key == "":
		v.fail("missing beside tls.certificate; write the file with its key", "tls.key", "tls.certificate", "tls")
		return
	}
	if _, err := upstream.ReadSecret(c.Key, maxKey); err != nil {
		v.fail(err.Error()+"; write the path of a file that cachalot can read", "tls.key")
	} else if _, err := c.Pair(); err != nil {
		v.fail(err.Error(), "tls.certificate")
	}
}

// tracing checks the keys of tracing. Its messages never contain the URL, which may have a
// password.
func (v *validator) tracing(c Tracing) {
	if !(c.SampleRatio >= 0 && c.SampleRatio <= 1) { // refuses NaN too
		v.fail("not a share; write a number from 0 to 1, such as 0.1", "tracing.sample_ratio")
	}
	if c.Endpoint == "" {
		return
	}
	u, err := url.Parse(c.Endpoint)
	switch {
	case err == nil && u.User != nil:
		v.fail("a credential in the URL; set it in the environment variable OTEL_EXPORTER_OTLP_HEADERS", "tracing.endpoint")
	case err != nil, u.Scheme != "http" && u.Scheme != "https", u.Hostname() == "", u.RawQuery != "", u.Fragment != "":
		v.fail("not the URL of a collector; write one such as http://otel-collector:4318", "tracing.endpoint")
	}
}

// minIndex is enough for the tags of some thousand repositories.
const minIndex = 1 << 20

func (v *validator) storage(s Storage) {
	if s.MaxSize == (storage.Size{}) && s.MinFree == (storage.Size{}) {
		v.fail("no limit, and min_free is 0 too; write a size such as 50GiB, or a share of the disk such as 80%", "storage.max_size", "storage.min_free")
	}
	if s.MinFree.Percent >= 100 {
		v.fail("the whole disk; write how much of it to leave free, such as 5%", "storage.min_free")
	}
	if s.MaxIndex.Percent > 0 || s.MaxIndex.Bytes > 0 && s.MaxIndex.Bytes < minIndex {
		v.fail(fmt.Sprintf("%q is not a limit for the index; write a size of 1MiB or more, such as 256MiB, or 0 for none", s.MaxIndex), "storage.max_index")
	}
	if s.HighMark.Percent == 0 {
		v.fail(fmt.Sprintf("%q is not a share of max_size; write one such as 98%%", s.HighMark), "storage.high_mark")
	}
	if s.LowMark.Percent == 0 {
		v.fail(fmt.Sprintf("%q is not a share of max_size; write one such as 95%%", s.LowMark), "storage.low_mark")
	}
	if !v.below("storage.high_mark") && s.LowMark.Percent > s.HighMark.Percent {
		v.fail(fmt.Sprintf("%s is above storage.high_mark, %s; write a lower one, or a higher storage.high_mark", s.LowMark, s.HighMark), "storage.low_mark", "storage.high_mark")
	}
	v.atLeastOne(s.MaxFills, "storage.max_fills")
}

func (v *validator) durations(c *Config) {
	for _, d := range []struct {
		key   string
		value time.Duration
		zero  bool // 0 has a meaning
	}{
		{"send_timeout", c.SendTimeout, true},
		{"drain_delay", c.DrainDelay, true},
		{"shutdown_timeout", c.ShutdownTimeout, false},
		{"storage.scrub_every", c.Storage.ScrubEvery, true},
		{"tags.fresh_for", c.Tags.FreshFor, true},
		{"tags.max_stale", c.Tags.MaxStale, true},
		{"tags.revalidate_timeout", c.Tags.RevalidateTimeout, false},
		{"tags.negative_for", c.Tags.NegativeFor, true},
		{"timeouts.dial", c.Timeouts.Dial, false},
		{"timeouts.tls_handshake", c.Timeouts.TLSHandshake, false},
		{"timeouts.response_header", c.Timeouts.ResponseHeader, false},
		{"timeouts.progress", c.Timeouts.Progress, false},
	} {
		switch {
		case d.value < 0:
			v.fail(brief(d.value)+" is negative; write a duration such as 10s", d.key)
		case d.value == 0 && !d.zero:
			v.fail("0 is not a time to wait; write a duration such as 10s", d.key)
		}
	}
	if c.Tags.FreshFor > c.Tags.MaxStale {
		v.fail(fmt.Sprintf("%s is longer than tags.max_stale, %s; write a shorter one", brief(c.Tags.FreshFor), brief(c.Tags.MaxStale)),
			"tags.fresh_for", "tags.max_stale")
	}
}

func (v *validator) upstreams(c *Config) {
	names := slices.Sorted(maps.Keys(c.Upstreams))
	if len(names) == 0 {
		v.fail("no registry; name at least one, or remove the key to use the well-known ones", "upstreams")
		return
	}
	for _, name := range names {
		if v.upstream(name, c.Upstreams[name]) {
			v.registry(c.UpstreamConfig(name), c.Upstreams[name])
		}
	}
	v.names(c, names)
	if _, ok := c.Upstreams[c.DefaultUpstream]; !ok {
		message := fmt.Sprintf("%q is not among the upstreams; write one of %s", c.DefaultUpstream, strings.Join(names, ", "))
		v.fail(message, "default_upstream", "upstreams")
	}
}

// upstream checks the name of an upstream and the combination of its keys; registry checks the
// other values. It returns false if the name is invalid.
func (v *validator) upstream(name string, u Upstream) bool {
	key := join("upstreams", name)
	if message := registryName(name); message != "" {
		v.fail(message, key)
		return false
	}
	switch {
	case u.URL != "" && len(u.URLs) > 0:
		v.fail("given along with url; keep one of the two", key+".urls")
	case len(u.addresses()) == 0:
		v.fail(fmt.Sprintf("missing, and %s is not a well-known registry; write its address, such as https://%s", name, name), key+".url", key)
	}
	if beside := given(u.beside()); len(u.Accounts) > 0 && len(beside) > 0 {
		v.fail("given along with accounts; move it into accounts, or remove accounts", join(key, beside[0]))
	}
	for i, a := range u.Accounts {
		if item := fmt.Sprintf("%s.accounts[%d]", key, i); a == (upstream.Account{}) && !v.below(item) {
			v.fail("no account; write a username with password or password_file, or docker_config, or keychain", item)
		}
	}
	v.addressRanges(u.AllowAddresses, key+".allow_addresses")
	v.atLeastOne(u.MaxConnections, key+".max_connections")
	return true
}

func (v *validator) addressRanges(list []string, key string) {
	for i, s := range list {
		if _, err := addressRange(s); err != nil {
			v.fail(err.Error(), fmt.Sprintf("%s[%d]", key, i))
		}
	}
}

// addressRange parses a range such as 10.0.0.0/8, or a single address. It accepts only the one
// form that is not ambiguous.
func addressRange(s string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(s)
	if a, e := netip.ParseAddr(s); e == nil {
		if a.Zone() != "" {
			return netip.Prefix{}, fmt.Errorf("%q has a zone; write %s", s, a.WithZone(""))
		}
		p, err = netip.PrefixFrom(a, a.BitLen()), nil
	}
	const mapped = 128 - 32 // bits in front of the IPv4 address (RFC 4291 section 2.5.5.2)
	switch {
	case err != nil:
		return netip.Prefix{}, fmt.Errorf("%q is not a range of addresses; write one such as 10.0.0.0/8, or an address such as 10.1.2.3", s)
	case p.Addr().Is4In6() && p.Bits() >= mapped:
		return netip.Prefix{}, fmt.Errorf("%q is IPv4 written as IPv6; write %s", s, netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-mapped).Masked())
	case p != p.Masked():
		return netip.Prefix{}, fmt.Errorf("%q has bits after its prefix; write %s, or %s for that one address", s, p.Masked(), p.Addr())
	}
	return p, nil
}

// names checks that each name, alias and host belongs to one registry.
func (v *validator) names(c *Config, names []string) {
	alias, host := map[string]string{}, map[string]string{}
	for _, name := range names {
		alias[name] = name
	}
	for _, name := range names {
		for i, a := range c.Upstreams[name].Aliases {
			key := fmt.Sprintf("upstreams.%s.aliases[%d]", name, i)
			switch owner, taken := alias[a]; {
			case !hostport.IsRegistry(a) && !isWord(a):
				v.fail(fmt.Sprintf("%q is not a name for a registry; write a host or a word in small letters, such as dockerhub", a), key)
			case taken && !v.done[join("upstreams", owner)]:
				v.fail(fmt.Sprintf("%s is already a name of %s; write another one", a, owner), key)
			}
			alias[a] = name
		}
		for i, h := range c.Upstreams[name].Hosts {
			key := fmt.Sprintf("upstreams.%s.hosts[%d]", name, i)
			switch owner, taken := host[strings.ToLower(h)]; {
			case !hostport.IsRegistry(h) || strings.Contains(h, ":"):
				v.fail(fmt.Sprintf("%q is not the name of a host; write one without a port, such as hub.mirror.example", h), key)
			case taken:
				v.fail(fmt.Sprintf("%s already leads to %s; write another one", h, owner), key)
			}
			host[strings.ToLower(h)] = name
		}
	}
}

// hostNames checks names that are allowed in a request's Host.
func (v *validator) hostNames(list []string, key string) {
	for i, name := range list {
		key := fmt.Sprintf("%s[%d]", key, i)
		if _, err := netip.ParseAddr(strings.Trim(name, "[]")); err == nil {
			v.fail(fmt.Sprintf("%q is an address, and requests for addresses are always served; write a name", name), key)
			continue
		}
		domain, all := strings.CutPrefix(name, "*.")
		if strings.Contains(name, ":") || !hostport.IsRegistry(domain) && (all || !isWord(name)) {
			v.fail(fmt.Sprintf("%q is not the name of a host; write one without a port, such as mirror.example, or *.mirror.example for all below it", name), key)
		}
	}
}

// isWord reports whether s could be the first part of a repository's name.
func isWord(s string) bool {
	h, ok := hostport.Parse(s)
	return ok && h.InImage() && !hostport.NamesRegistry(s) && strings.ToLower(s) == s && s != "v2"
}

// registry checks the values of an upstream. If they are valid, it also creates the registry,
// as serve does, to find problems such as a file that cannot be read.
func (v *validator) registry(cfg upstream.Config, u Upstream) {
	wrong := cfg.Validate()
	if len(wrong) == 0 && !v.below(join("upstreams", cfg.Name)) {
		r, err := upstream.New(cfg, upstream.NewMetrics(), slog.New(slog.DiscardHandler))
		at, ok := errors.AsType[*upstream.KeyError](err)
		switch {
		case err == nil:
			r.Close()
		case ok:
			wrong = append(wrong, at)
		default:
			wrong = append(wrong, &upstream.KeyError{Key: join("upstreams", cfg.Name), Err: err})
		}
	}
	for _, w := range wrong {
		v.wrong(u.keyOf(cfg.Name, w.Key), w.Err)
	}
}

// wrong reports a problem of an upstream's key, unless the key, or another key of the same
// account, already has one: the message would then be about an incomplete account.
func (v *validator) wrong(key string, err error) {
	keys := []string{key}
	if dot := strings.LastIndexByte(key, '.'); slices.Contains(accountKeys(), key[dot+1:]) {
		for _, name := range accountKeys() {
			keys = append(keys, key[:dot+1]+name)
		}
		if strings.HasSuffix(key[:dot], "]") && v.below(key[:dot]) {
			return
		}
	}
	if slices.ContainsFunc(keys, v.below) {
		return
	}
	message := err.Error()
	if _, unreadable := errors.AsType[*os.PathError](err); unreadable {
		message += "; write the path of a file that cachalot can read"
	}
	v.fail(message, keys...)
}

// registryName returns what is wrong with the name of a registry, or "".
func registryName(name string) string {
	if lower := strings.ToLower(name); lower != name {
		return "a registry's name has no capital letters; write " + lower
	}
	if !hostport.IsRegistry(name) {
		return fmt.Sprintf("%q is not the name of a registry; write the host that images are named with, such as docker.io", name)
	}
	// Images have the canonical name of a registry, such as docker.io for Docker Hub's hosts.
	if canonical, ok := upstream.CanonicalName(name); ok && canonical != name {
		return fmt.Sprintf("images of this registry are named with %s; write that", canonical)
	}
	return ""
}
