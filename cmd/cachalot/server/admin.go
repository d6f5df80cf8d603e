package server

import (
	"net"
	"slices"
	"time"

	"github.com/cachalot-registry/cachalot/proxy"
)

// adminConfig is for the listener at addr.
func (m *mirror) adminConfig(addr net.Addr, version string) proxy.AdminConfig {
	tcp, ok := addr.(*net.TCPAddr)
	admin := m.cfg.Admin // fixed until the end, unlike m.cfg
	hosts := slices.Clone(admin.Hosts)
	if host, _, err := net.SplitHostPort(admin.Listen); err == nil && host != "" {
		hosts = append(hosts, host)
	}
	return proxy.AdminConfig{
		Gatherer: m.metrics.registry,
		Ready:    m.ready,
		Current:  m.current.use,
		Loopback: ok && tcp.IP.IsLoopback(),
		Hosts:    hosts,
		Token:    admin.ReadToken,
		Version:  version,
		Started:  time.Now(),
		Log:      m.log,
	}
}
