package dind

import (
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
)

const (
	mtuOption       = "com.docker.network.driver.mtu"
	usualMTU        = 1500 // and dockerd's default
	leastMTU        = 68   // the minimum of IPv4
	rootlessMTU     = "DOCKERD_ROOTLESS_ROOTLESSKIT_MTU"
	routeUp         = 0x1
	routeReject     = 0x200
	routeFields     = 8  // up to the mask
	routeFieldsIPv6 = 10 // all
)

// defaultInterfaces returns the interfaces of the default routes of IPv4 and IPv6.
func (r Root) defaultInterfaces() []string {
	var names []string
	if name := bestRoute(r.read, "/proc/net/route", routeIPv4); name != "" {
		names = append(names, name)
	}
	if name := bestRoute(r.read, "/proc/net/ipv6_route", routeIPv6); name != "" {
		names = append(names, name)
	}
	return names
}

// bestRoute returns the interface of the route with the lowest metric among the
// lines that parse accepts.
func bestRoute(read func(string) ([]byte, error), path string, parse func([]string) (string, uint64, bool)) string {
	b, err := read(path)
	if err != nil {
		return "" // the kernel has no such protocol
	}
	var best string
	var lowest uint64
	for line := range strings.Lines(string(b)) {
		name, metric, ok := parse(strings.Fields(line))
		if ok && (best == "" || metric < lowest) {
			best, lowest = name, metric
		}
	}
	return best
}

// routeIPv4 reads: interface, destination, gateway, flags, references, use,
// metric, mask. Addresses and flags are hexadecimal.
func routeIPv4(f []string) (name string, metric uint64, ok bool) {
	if len(f) < routeFields || f[1] != "00000000" || f[7] != "00000000" {
		return "", 0, false
	}
	flags, err := strconv.ParseUint(f[3], 16, 32)
	if err != nil || flags&routeUp == 0 || flags&routeReject != 0 {
		return "", 0, false
	}
	metric, err = strconv.ParseUint(f[6], 10, 32)
	return f[0], metric, err == nil
}

// routeIPv6 reads, all hexadecimal but the interface: destination, prefix, source,
// prefix, next hop, metric, references, use, flags, interface.
func routeIPv6(f []string) (name string, metric uint64, ok bool) {
	if len(f) < routeFieldsIPv6 || strings.Trim(f[0], "0") != "" || f[1] != "00" {
		return "", 0, false
	}
	flags, err := strconv.ParseUint(f[8], 16, 32)
	if err != nil || flags&routeUp == 0 || flags&routeReject != 0 {
		return "", 0, false
	}
	metric, err = strconv.ParseUint(f[5], 16, 32)
	return f[9], metric, err == nil
}

// lowMTU returns the interface of a default route with the lowest MTU, if that is
// below the usual one.
func (r Root) lowMTU() (name string, mtu int) {
	mtu = usualMTU
	for _, candidate := range r.defaultInterfaces() {
		b, err := r.read(filepath.Join("/sys/class/net", filepath.Base(candidate), "mtu"))
		if err != nil {
			continue
		}
		if n, err := strconv.Atoi(strings.TrimSpace(string(b))); err == nil && n >= leastMTU && n < mtu {
			name, mtu = candidate, n
		}
	}
	return name, mtu
}

// fitMTU gives containers the MTU of the default route's interface. With a larger one, packets
// to them would be too large for that network, and be lost.
func (p *planner) fitMTU() {
	name, mtu := p.in.Root.lowMTU()
	if name == "" {
		return
	}
	var gets []string
	if !p.flags.given["mtu"] && !p.json.has["mtu"] {
		gets = append(gets, fmt.Sprintf("--mtu=%d", mtu))
	}
	held := false // daemon.json has other network options, so the flag cannot be added
	if p.in.Version.takesNetworkOpt() && !p.flags.bridgeMTU() && !p.json.bridgeMTU() {
		if held = p.json.has["default-network-opts"]; !held {
			gets = append(gets, fmt.Sprintf("--default-network-opt=bridge=%s=%d", mtuOption, mtu))
		}
	}
	p.add(gets...)
	if p.in.UID != 0 && p.env.get(rootlessMTU) == "" {
		p.env = p.env.with(rootlessMTU, strconv.Itoa(mtu))
		gets = append(gets, fmt.Sprintf("%s=%d", rootlessMTU, mtu))
	}
	if len(gets) > 0 {
		p.say("%s, the default route's interface, has an MTU of %d: dockerd gets %s", name, mtu, strings.Join(gets, " "))
	}
	if held {
		p.warn(`networks other than the default one keep their MTU: add "bridge": {%q: "%d"} to default-network-opts in %s`, mtuOption, mtu, p.json.path)
	}
}
