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

// identify gives the request an id, which its answer says: the client's own, or
// that of a load balancer before us, where it is safe to repeat.
func (w *response) identify(r *http.Request) {
	if given := r.Header["X-Request-Id"]; len(given) == 1 && isRequestID(given[0]) {
		w.id = given[0]
	} else {
		w.id = newRequestID()
	}
	w.said[0] = w.id
	w.Header()["X-Request-Id"] = w.said[:]
	w.ctx = upstream.WithRequestID(r.Context(), w.id)
}

// maxRequestID is longer than any that is made for the purpose.
const maxRequestID = 128

// isRequestID says whether an id can stand in headers, logs and shell commands.
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

// newRequestID is 128 random bits, which are no secret.
func newRequestID() string {
	var b [16]byte
	binary.NativeEndian.PutUint64(b[:8], rand.Uint64())
	binary.NativeEndian.PutUint64(b[8:], rand.Uint64())
	var text [32]byte
	hex.Encode(text[:], b[:])
	return string(text[:])
}

// maxHops bounds how far back a request is followed.
const maxHops = 32

// client is the address that a request comes from, without its port: that of the
// connection or, where a trusted proxy has made it, the last one that a trusted
// proxy names and that is none itself. What stands before it anybody may have
// written.
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
			break // as far as it is known
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
