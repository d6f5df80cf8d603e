package dind

import (
	"cmp"

	"golang.org/x/net/http/httpproxy"
)

// bypassProxy makes dockerd reach the mirror without a proxy, if dockerd has one. dockerd reads
// these variables as Go does, and sets them by its own configuration.
func (p *planner) bypassProxy() {
	config := httpproxy.Config{
		HTTPProxy:  cmp.Or(p.flags.httpProxy, p.json.Proxies.HTTP, p.env.either("HTTP_PROXY", "http_proxy")),
		HTTPSProxy: cmp.Or(p.flags.httpsProxy, p.json.Proxies.HTTPS, p.env.either("HTTPS_PROXY", "https_proxy")),
	}
	proxied := func(except string) bool {
		config.NoProxy = except
		u, err := config.ProxyFunc()(p.set.mirror)
		return u != nil || err != nil
	}
	if !proxied("") {
		return
	}
	host := p.set.mirror.Hostname()
	if except := cmp.Or(p.flags.noProxy, p.json.Proxies.No); except != "" {
		if proxied(except) {
			where := "--no-proxy"
			if p.flags.noProxy == "" {
				where = "no-proxy in " + p.json.path
			}
			p.warn("%s is asked through the proxy: %s does not have %s; add it there", p.set.mirror, where, host)
		}
		return
	}
	// Go reads no_proxy only if NO_PROXY is empty, other programs the other way round. So a new
	// variable also has the list of the other one.
	upper, lower := p.env.get("NO_PROXY"), p.env.get("no_proxy")
	upperChanged := p.except("NO_PROXY", cmp.Or(upper, lower), host, proxied)
	if lowerChanged := p.except("no_proxy", cmp.Or(lower, upper), host, proxied); upperChanged || lowerChanged {
		p.say("%s is added to NO_PROXY: the mirror is asked without the proxy", host)
	}
}

// except adds a host to the list in a variable, unless the list covers it.
func (p *planner) except(variable, list, host string, proxied func(except string) bool) bool {
	if !proxied(list) {
		return false
	}
	if list != "" {
		list += ","
	}
	p.env = p.env.with(variable, list+host)
	return true
}
