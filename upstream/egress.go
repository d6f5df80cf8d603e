package upstream

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"syscall"

	"github.com/cachalot-registry/cachalot/task"
)

// egress is the only place that decides which addresses a registry's requests may reach:
// those to its URLs, to redirect targets and to token realms. A name is checked by the
// address that it resolves to, when the connection is made, so that no second DNS answer
// can change the address after the check.
//
// All connections to the operator's HTTP proxy are allowed. The proxy resolves the target's
// name then, and must have a policy of its own; here only a target that is a literal
// address can be refused.
type egress struct {
	key     string          // the configuration key that allows more
	allowed []netip.Prefix  // of whatever class
	own     map[string]bool // hosts that may be at private addresses
	dialer  net.Dialer
}

func newEgress(cfg Config) *egress {
	e := &egress{
		key:     cfg.key("allow_addresses"),
		allowed: append([]netip.Prefix(nil), cfg.AllowAddresses...),
		own:     map[string]bool{},
		dialer:  net.Dialer{Timeout: cfg.Timeouts.Dial},
	}
	if cfg.Unlisted {
		return e
	}
	for _, h := range cfg.TokenRealms {
		if u, err := url.Parse("https://" + h); err == nil {
			e.own[bareHost(u.Hostname())] = cfg.Private
		}
	}
	for _, raw := range cfg.URLs {
		u, err := parseBase(raw)
		if err != nil {
			continue // validated before
		}
		host := bareHost(u.Hostname())
		e.own[host] = cfg.Private
		if a, err := netip.ParseAddr(host); err == nil {
			e.allowed = append(e.allowed, single(a))
		} else if host == "localhost" { // RFC 6761 section 6.3
			e.allowed = append(e.allowed, single(netip.AddrFrom4([4]byte{127, 0, 0, 1})), single(netip.IPv6Loopback()))
		}
	}
	return e
}

// bareHost returns host in lower case and without a dot at its end.
func bareHost(host string) string { return strings.ToLower(strings.TrimSuffix(host, ".")) }

// plain returns the address that a packet would have: for an IPv4-mapped one (RFC 4291
// section 2.5.5.2) the IPv4 address. It has no zone, because no prefix contains a zone.
func plain(a netip.Addr) netip.Addr { return a.Unmap().WithZone("") }

// single is the prefix of one address.
func single(a netip.Addr) netip.Prefix {
	a = plain(a)
	return netip.PrefixFrom(a, a.BitLen())
}

// sharedSpace is private to a carrier or a cluster (RFC 6598).
//
//nolint:gochecknoglobals // a constant
var sharedSpace = netip.MustParsePrefix("100.64.0.0/10")

// judge returns "" if host may be reached at a, and otherwise what a is.
func (e *egress) judge(host string, a netip.Addr) string {
	if e.own[bareHost(host)] && (plain(a).IsPrivate() || sharedSpace.Contains(plain(a))) {
		return ""
	}
	for _, p := range e.allowed {
		if p.Contains(plain(a)) {
			return ""
		}
	}
	return special(a)
}

// refusal is the error of a connection that the policy does not allow.
type refusal struct {
	host    string     // as requested
	address netip.Addr // invalid: host is a number, which may be read as an address
	class   string     // what address is
	key     string
}

// public returns the text for clients. It does not say what the host resolves to.
func (r *refusal) public() string {
	if !r.address.IsValid() {
		return "the host is a number, not a name"
	}
	return "the address is not allowed unless " + r.key + " has it"
}

func (r *refusal) Error() string {
	host := printable(r.host, 255)
	if !r.address.IsValid() {
		return fmt.Sprintf("%s is refused: a number instead of a name, which a proxy may read as an address", host)
	}
	finding := host + " resolves to " + r.address.String() + ", " + r.class
	switch bareHost(r.host) {
	case r.address.String():
		finding = host + " is " + r.class
	case "::ffff:" + r.address.String():
		finding = host + " is " + r.address.String() + ", " + r.class
	}
	return fmt.Sprintf("%s; to allow it set %s: [%q]", finding, r.key, single(r.address))
}

func (e *egress) refusal(host string, a netip.Addr, class string) *refusal {
	return &refusal{host: host, address: plain(a), class: class, key: e.key}
}

// toProxy marks the context of a request that goes to an HTTP proxy.
type toProxy struct{}

// route prepares req for its HTTP proxy, if it has one. The error is a
// *refusal.
func (e *egress) route(ctx context.Context, req *http.Request, proxy func(*http.Request) (*url.URL, error)) (context.Context, error) {
	if proxy == nil {
		return ctx, nil
	}
	if via, err := proxy(req); via == nil || err != nil {
		return ctx, nil //nolint:nilerr // the transport calls proxy again, and fails the request
	}
	if r := e.literal(req.URL.Hostname()); r != nil {
		return ctx, r
	}
	return context.WithValue(ctx, toProxy{}, true), nil
}

// literal checks a host that the proxy will resolve. If its last label is a number, it is
// not a name, but inet_aton reads 127.1 and 0x7f000001 as addresses, and the proxy may do
// the same.
func (e *egress) literal(host string) *refusal {
	bare := bareHost(host)
	if a, err := netip.ParseAddr(bare); err == nil {
		if class := e.judge(host, a); class != "" {
			return e.refusal(host, a, class)
		}
		return nil
	}
	last := bare[strings.LastIndexByte(bare, '.')+1:]
	if bare == "" || strings.Trim(last, "0123456789") == "" || strings.HasPrefix(last, "0x") && strings.Trim(last[2:], "0123456789abcdef") == "" {
		return &refusal{host: host}
	}
	return nil
}

// dial connects to one of the allowed addresses that address resolves to. If there is none,
// it fails with a *refusal, and sends no packet to any of them.
func (e *egress) dial(ctx context.Context, network, address string) (net.Conn, error) {
	if ctx.Value(toProxy{}) != nil {
		return e.dialer.DialContext(ctx, network, address)
	}
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return nil, fmt.Errorf("dial: %w", err)
	}
	var (
		mu      sync.Mutex // guards the next two: addresses are tried in parallel (RFC 8305)
		tried   bool
		refused *refusal // of the lowest address
	)
	d := e.dialer
	// judge is called with each resolved address, before connect(2).
	judge := func(resolved string) error {
		to, err := netip.ParseAddrPort(resolved)
		if err != nil {
			return fmt.Errorf("check an address: %w", err)
		}
		class := e.judge(host, to.Addr())
		mu.Lock()
		defer mu.Unlock()
		if class == "" {
			tried = true
			return nil
		}
		r := e.refusal(host, to.Addr(), class)
		if refused == nil || r.address.Less(refused.address) {
			refused = r
		}
		return r
	}
	d.ControlContext = func(_ context.Context, _, resolved string, _ syscall.RawConn) error { // in goroutines of package net
		return task.Try("connection to an upstream", func() error { return judge(resolved) })
	}
	conn, err := d.DialContext(ctx, network, address)
	if err == nil {
		return conn, nil
	}
	if _, ok := errors.AsType[*refusal](err); !ok {
		return nil, err
	}
	mu.Lock()
	defer mu.Unlock()
	if tried { // the error is that of the first address, not of the allowed one
		return nil, fmt.Errorf("dial %s: no answer from the allowed address", host)
	}
	return nil, refused
}
