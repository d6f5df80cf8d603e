package server

import (
	"net"
	"slices"
	"time"

	"github.com/cachalot-registry/cachalot/proxy/admin"
)

// adminConfig is for the listener at addr.
func (m *mirror) adminConfig(addr net.Addr, version string) admin.Config {
	tcp, ok := addr.(*net.TCPAddr)
	cfg := m.cfg.Admin // fixed until the end, unlike m.cfg
	hosts := slices.Clone(cfg.Hosts)
	if host, _, err := net.SplitHostPort(cfg.Listen); err == nil && host != "" {
		hosts = append(hosts, host)
	}
	return admin.Config{
		Gatherer: m.metrics.registry,
		Ready:    m.ready,
		Current:  m.current.use,
		Pins:     m.pins,
		Loopback: ok && tcp.IP.IsLoopback(),
		Hosts:    hosts,
		Token:    cfg.ReadToken,
		Version:  version,
		Started:  time.Now(),
		Log:      m.log,
	}
}
