package server

import (
	"net"
	"slices"
	"time"

	"github.com/cachalot-registry/cachalot/proxy/admin"
)

// adminConfig returns the configuration of the admin listener at addr.
func (m *mirror) adminConfig(addr net.Addr, version string) admin.Config {
	tcp, ok := addr.(*net.TCPAddr)
	cfg := m.cfg.Admin // a reload changes m.cfg, but not this part
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
