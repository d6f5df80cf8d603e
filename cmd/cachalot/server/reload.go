package server

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/cachalot-registry/cachalot/cmd/cachalot/config"
	"github.com/cachalot-registry/cachalot/task"
)

// reload loads the configuration again, and applies what can change at run time: the log level,
// send_timeout, drain_delay, shutdown_timeout, and all that a generation is made of. A file with a problem
// changes nothing.
func (m *mirror) reload() {
	if m.file == "" {
		m.log.Warn("no configuration file to reload; start with --config FILE to have one")
		return
	}
	if err := m.tryReload(); err != nil {
		m.metrics.reloaded.Set(0)
		if invalid, ok := errors.AsType[*config.Error](err); ok {
			for line := range strings.SplitSeq(invalid.Error(), "\n") {
				m.log.Error("configuration not reloaded; the old one stays in effect", "problem", line)
			}
			return
		}
		m.log.Error("configuration not reloaded; the old one stays in effect", "error", err)
		return
	}
	m.metrics.reloaded.Set(1)
	m.log.Info("configuration reloaded", "file", m.file, "default_upstream", m.cfg.DefaultUpstream, "upstreams", len(m.cfg.Upstreams))
}

func (m *mirror) tryReload() error {
	next, err := config.Load(m.file, os.LookupEnv)
	if err != nil {
		return err
	}
	if err := m.loses(next); err != nil {
		return err
	}
	m.keepFixed(&next)
	g, err := m.newGeneration(next)
	if err != nil {
		return err
	}
	if err := setLevel(m.level, next.Log.Level); err != nil {
		g.close()
		return err
	}
	m.stuck.limit.Store(int64(next.SendTimeout))
	m.clients.trust(config.AddressRanges(next.TrustedProxies))
	m.pins.SetRules(next.ProxyConfig().Pinned())
	m.store.SetListed(next.Listed())
	old := m.current.swap(g)
	m.retiring.Go(task.Guard("close of the former configuration", old.close))
	m.cfg = next
	return nil
}

// loses returns an error if the file is empty, or if the built-in upstreams would replace
// configured ones: the file may have been cut off while it was written. A restart accepts such
// a file.
func (m *mirror) loses(next config.Config) error {
	data, err := os.ReadFile(m.file)
	if err != nil {
		return err
	}
	empty := true
	for line := range strings.Lines(string(data)) {
		line = strings.TrimSpace(line)
		empty = empty && (line == "" || line == "---" || strings.HasPrefix(line, "#"))
	}
	builtIn := slices.Sorted(maps.Keys(config.WellKnown()))
	switch {
	case empty:
		return fmt.Errorf("%s is empty: write the configuration to it, or restart to run without one", m.file)
	case slices.Equal(slices.Sorted(maps.Keys(next.Upstreams)), builtIn) && !slices.Equal(slices.Sorted(maps.Keys(m.cfg.Upstreams)), builtIn):
		return fmt.Errorf("%s has no upstreams, and the built-in ones would replace the configured ones: write the upstreams to it, or restart", m.file)
	}
	return nil
}

// keepFixed logs the changed keys of next that need a restart, and sets them back to the values
// in effect.
func (m *mirror) keepFixed(next *config.Config) {
	var changed []string
	if next.Listen != m.cfg.Listen {
		changed = append(changed, "listen")
	}
	if next.MaxConnections != m.cfg.MaxConnections {
		changed = append(changed, "max_connections")
	}
	if next.FairShare != m.cfg.FairShare {
		changed = append(changed, "fair_share")
	}
	if next.TLS != m.cfg.TLS {
		changed = append(changed, "tls")
	}
	if next.Admin.Listen != m.cfg.Admin.Listen {
		changed = append(changed, "admin.listen")
	}
	if !slices.Equal(next.Admin.Hosts, m.cfg.Admin.Hosts) {
		changed = append(changed, "admin.hosts")
	}
	if next.Admin.Token != m.cfg.Admin.Token || next.Admin.TokenFile != m.cfg.Admin.TokenFile {
		changed = append(changed, "admin.token, admin.token_file")
	}
	if next.Log.Format != m.cfg.Log.Format {
		changed = append(changed, "log.format")
	}
	if next.Tracing != m.cfg.Tracing {
		changed = append(changed, "tracing")
	}
	if next.Storage.Path != m.cfg.Storage.Path {
		changed = append(changed, "storage.path")
	}
	if next.Storage.MaxSize != m.cfg.Storage.MaxSize {
		changed = append(changed, "storage.max_size")
	}
	if next.Storage.MinFree != m.cfg.Storage.MinFree {
		changed = append(changed, "storage.min_free")
	}
	if next.Storage.MaxIndex != m.cfg.Storage.MaxIndex {
		changed = append(changed, "storage.max_index")
	}
	if next.Storage.HighMark != m.cfg.Storage.HighMark {
		changed = append(changed, "storage.high_mark")
	}
	if next.Storage.LowMark != m.cfg.Storage.LowMark {
		changed = append(changed, "storage.low_mark")
	}
	if next.Storage.MaxFills != m.cfg.Storage.MaxFills {
		changed = append(changed, "storage.max_fills")
	}
	if next.Storage.ScrubEvery != m.cfg.Storage.ScrubEvery {
		changed = append(changed, "storage.scrub_every")
	}
	if len(changed) > 0 {
		m.log.Warn("changed keys need a restart", "keys", strings.Join(changed, ", "))
	}
	next.Listen, next.MaxConnections, next.FairShare = m.cfg.Listen, m.cfg.MaxConnections, m.cfg.FairShare
	next.TLS, next.Admin, next.Storage, next.Log.Format = m.cfg.TLS, m.cfg.Admin, m.cfg.Storage, m.cfg.Log.Format
	next.Tracing = m.cfg.Tracing
}
