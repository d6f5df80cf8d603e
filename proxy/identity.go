package proxy

import (
	"encoding/binary"
	"encoding/hex"
	"math/rand/v2"
	"net/http"
	"net/netip"
	"strings"

	"github.com/cachalot-registry/cachalot/upstream"
)

// identify gives the request an id, and sets it in the answer: the X-Request-Id of the
// client or a load balancer, if it is safe to repeat; else a new one.
func (w *response) identify(r *http.Request) {
	if given := r.Header["X-Request-Id"]; len(given) == 1 && isRequestID(given[0]) {
		w.id = given[0]
	} else {
		w.id = newRequestID()
	}
	w.set("X-Request-Id", w.id)
	w.ctx = upstream.WithRequestID(r.Context(), w.id)
}

// maxRequestID is longer than the ids that programs make.
const maxRequestID = 128

// isRequestID reports whether an id is safe in headers, logs and shell commands.
func isRequestID(s string) bool {
	if s == "" || len(s) > maxRequestID {
		return false
	}
	for _, c := range []byte(s) {
		if !isLowerOrDigit(c) && (c < 'A' || c > 'Z') && strings.IndexByte("-_.:+/=@", c) < 0 {
			return false
		}
	}
	return true
}

// newRequestID returns 128 random bits in hexadecimal. They are not a secret.
func newRequestID() string {
	var b [16]byte
	binary.NativeEndian.PutUint64(b[:8], rand.Uint64())
	binary.NativeEndian.PutUint64(b[8:], rand.Uint64())
	var text [32]byte
	hex.Encode(text[:], b[:])
	return string(text[:])
}

// maxHops bounds how many trusted proxies are skipped.
const maxHops = 32

// client returns the address of a request's client, without its port: that of the
// connection or, if it is a trusted proxy's, the last address in the proxy's header that is
// not a trusted proxy itself. Addresses before that one can be forged.
func (p *Proxy) client(r *http.Request) string {
	peer := withoutPort(r.RemoteAddr)
	if len(p.cfg.TrustedProxies) == 0 {
		return peer
	}
	at, err := netip.ParseAddr(peer)
	if err != nil {
		return peer
	}
	hops := r.Header[http.CanonicalHeaderKey(p.cfg.ForwardedHeader)]
	before := ""
	for range maxHops {
		if at = at.Unmap(); !p.trusts(at) {
			break
		}
		for before == "" && len(hops) > 0 {
			before, hops = hops[len(hops)-1], hops[:len(hops)-1]
		}
		hop := before[strings.LastIndexByte(before, ',')+1:]
		before = strings.TrimSuffix(before[:len(before)-len(hop)], ",")
		next, ok := parseHop(hop, p.cfg.ForwardedHeader)
		if !ok {
			break // the last address that is known
		}
		at = next
	}
	return at.String()
}

func (p *Proxy) trusts(a netip.Addr) bool {
	for _, trusted := range p.cfg.TrustedProxies {
		if trusted.Contains(a) {
			return true
		}
	}
	return false
}

// parseHop reads an element of X-Forwarded-For, or the for= of one of Forwarded
// (RFC 7239), with or without a port.
func parseHop(hop, header string) (netip.Addr, bool) {
	hop = strings.TrimSpace(hop)
	if strings.EqualFold(header, "Forwarded") {
		var found bool
		for pair := range strings.SplitSeq(hop, ";") {
			name, value, _ := strings.Cut(strings.TrimSpace(pair), "=")
			if strings.EqualFold(name, "for") {
				if found {
					return netip.Addr{}, false
				}
				hop, found = strings.Trim(value, `"`), true
			}
		}
		if !found {
			return netip.Addr{}, false
		}
	}
	a, err := netip.ParseAddr(withoutPort(hop))
	return a.WithZone(""), err == nil
}

// withoutPort takes the port off an address, and the brackets of IPv6.
func withoutPort(s string) string {
	if host, rest, ok := strings.Cut(s, "]"); ok && strings.HasPrefix(host, "[") && (rest == "" || rest[0] == ':') {
		return host[1:]
	}
	if i := strings.IndexByte(s, ':'); i >= 0 && i == strings.LastIndexByte(s, ':') {
		return s[:i]
	}
	return s
}
