// Package server runs a mirror: listeners, TLS, the configuration and its reload,
// tracing, metrics, and the order of start and shutdown.
//
//	file ─► config ─┬─► storage ─────────────────────────┐
//	                └─► generation: upstream, proxy ─────┤
//	SIGHUP, watch ─► reload ─► the next generation       │
//	clients ─► boundedListener ─► TLS ─► http.Server ─► current generation
//	operators ─► boundedListener ──────► http.Server ─► admin API
package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cachalot-registry/cachalot/cmd/cachalot/config"
	"github.com/cachalot-registry/cachalot/proxy/admin"
	"github.com/cachalot-registry/cachalot/storage"
	"github.com/cachalot-registry/cachalot/task"
)

// errStoppedAtOnce: a second signal came before running responses had ended.
var errStoppedAtOnce = errors.New("stopped at once by a second signal")

// maxAdminConnections is plenty for probes, a scraper or two and a profile.
const maxAdminConnections = 64

// mirror is a running cachalot.
type mirror struct {
	foundation

	file     string        // of the configuration; may be empty
	cfg      config.Config // in effect; belongs to the goroutine of run
	level    *slog.LevelVar
	metrics  *metrics
	tracing  *tracing // nil: off
	main     *http.Server
	clients  *boundedListener
	stuck    *stuckClients
	admin    *http.Server
	pins     *admin.Pins
	endLong  context.CancelFunc // ends long requests of the admin API
	current  current
	draining atomic.Bool
	retiring sync.WaitGroup // replaced generations, until they are closed
}

// Build is the version of this cachalot.
type Build struct {
	Version  string // of the module, or "devel"
	Revision string // of the source, or "unknown"
}

// Run runs the mirror with a configuration file, or with the defaults if file is "". It logs to
// stderr. It ends when ctx ends, a signal other than SIGHUP comes, or a listener fails, and
// returns nil after an orderly end. SIGHUP reloads the file. A second signal ends it at once.
func Run(ctx context.Context, file string, b Build, signals <-chan os.Signal, stderr io.Writer) error {
	cfg, err := config.Load(file, os.LookupEnv)
	if err != nil {
		return err
	}
	m := &mirror{file: file, cfg: cfg, level: new(slog.LevelVar)}
	if err := setLevel(m.level, cfg.Log.Level); err != nil {
		return err
	}
	m.log = newLogger(stderr, cfg.Log.Format, m.level)
	m.warnOfFewDescriptors()

	// Listen first: a second cachalot must fail before it opens the cache.
	l, err := listen(ctx, cfg.Listen, "listen")
	if err != nil {
		return err
	}
	defer func() { _ = l.Close() }() // the server has closed it
	adminListener, err := listen(ctx, cfg.Admin.Listen, "admin.listen")
	if err != nil {
		return err
	}
	defer func() { _ = adminListener.Close() }()
	return m.run(ctx, b, l, adminListener, signals)
}

func (m *mirror) run(ctx context.Context, b Build, l, adminListener *net.TCPListener, signals <-chan os.Signal) error {
	var secure *certificate
	if m.cfg.TLS.On() {
		var err error
		if secure, err = newCertificate(m.cfg.TLS, m.log); err != nil {
			return fmt.Errorf("tls.certificate: %w", err)
		}
	}
	m.clients = newBoundedListener(l, m.cfg.MaxConnections, m.cfg.FairShare.Percent/100, m.warnOfFullListener())
	m.clients.trust(config.AddressRanges(m.cfg.TrustedProxies))
	probes := newBoundedListener(adminListener, maxAdminConnections, m.cfg.FairShare.Percent/100, func() {})

	var err error
	if m.memory, err = newMemory(m.cfg.FairShare.Percent/100, m.log); err != nil {
		return err
	}
	m.metrics = newMetrics(b, m.memory, func() float64 { return float64(m.clients.places.Taken()) }, m.cfg.MaxConnections)
	if secure != nil {
		m.metrics.watch(secure)
	}
	m.proxyMetrics, m.upstreamMetrics = m.metrics.proxy, m.metrics.upstream
	task.OnPanic(func(p *task.PanicError) {
		m.metrics.panics.Inc()
		m.log.Error("panic; only this work has ended: report this as a bug", "work", p.Work, "panic", fmt.Sprint(p.Value), "stack", string(p.Stack))
	})

	if m.tracing, err = newTracing(ctx, m.cfg.Tracing, b, os.LookupEnv, m.log); err != nil {
		return err
	}
	m.tracer = m.tracing.tracer()
	folder, err := m.openStore()
	if err != nil {
		return err
	}
	first, err := m.newGeneration(m.cfg)
	if err != nil {
		return errors.Join(err, m.store.Close())
	}
	m.current.swap(first)

	m.main = newServer(m.withDrain(&m.current), m.clients, m.log)
	m.stuck = newStuckClients(m.cfg.SendTimeout, m.clients.atWork, m.log)
	ctx, cancel := context.WithCancel(ctx)
	var looking sync.WaitGroup
	looking.Go(task.Keep(ctx, "look for stuck clients", func() { m.stuck.run(ctx) }))
	defer looking.Wait()
	defer cancel()
	var accepting net.Listener = m.clients
	if secure != nil {
		accepting = newTLSListener(m.clients, secure)
		overTLS(m.main)
	}
	m.admin = newServer(admin.New(m.adminConfig(adminListener.Addr(), b.Version)), probes, m.log)
	long, endLong := context.WithCancel(context.Background())
	defer endLong()
	m.endLong = endLong
	m.admin.BaseContext = func(net.Listener) context.Context { return long }
	failed := make(chan error, 2)
	go func() { failed <- task.Try("listen", func() error { return m.main.Serve(accepting) }) }()
	go func() { failed <- task.Try("admin.listen", func() error { return m.admin.Serve(probes) }) }()

	m.log.Info("serving; give this to dockerd", append(mirrorURLs(l.Addr(), m.cfg.Scheme()),
		"admin", "http://"+adminListener.Addr().String(), "storage", folder,
		"default_upstream", m.cfg.DefaultUpstream, "upstreams", len(m.cfg.Upstreams), "version", b.Version)...)

	for {
		select {
		case err := <-failed:
			return errors.Join(fmt.Errorf("serve: %w", err), m.stop(signals, 0))
		case <-ctx.Done():
			return m.stop(signals, m.cfg.DrainDelay)
		case s := <-signals:
			if s != syscall.SIGHUP {
				m.draining.Store(true)
				m.log.Info("stopping; running responses may end", "signal", s.String(), "drain_delay", m.cfg.DrainDelay, "shutdown_timeout", m.cfg.ShutdownTimeout)
				return m.stop(signals, m.cfg.DrainDelay)
			}
			m.reload()
		}
	}
}

func (m *mirror) openStore() (folder string, err error) {
	cfg, err := m.cfg.StorageConfig()
	if err != nil {
		return "", err
	}
	m.pins = admin.OpenPins(filepath.Join(cfg.Path, "pins.json"), m.log)
	m.pins.SetRules(m.cfg.ProxyConfig().Pinned())
	cfg.Pinned = m.pins.Pinned()
	m.store, err = storage.Open(cfg, m.metrics.storage, m.log)
	switch {
	case err == nil:
		m.pins.Tell(m.store.SetPinned)
	case errors.Is(err, storage.ErrLocked):
		err = fmt.Errorf("open the cache: %w; stop that process, or set storage.path to another folder", err)
	case errors.Is(err, os.ErrPermission), errors.Is(err, syscall.EROFS):
		wanted := m.cfg.Storage.Path
		if wanted == "" {
			wanted = config.SystemStoragePath // the folder that was tried is the fallback
		}
		err = fmt.Errorf("open the cache: %w; give this user the folder %s, or set storage.path to another one", err, wanted)
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		err = fmt.Errorf("open the cache: %w; free space there, or set storage.path to a folder on another disk", err)
	case err != nil:
		err = fmt.Errorf("open the cache: %w; or set storage.path to another folder", err)
	}
	return cfg.Path, err
}

// ready returns the error for /readyz.
func (m *mirror) ready() error {
	if m.draining.Load() {
		return errors.New("shutting down")
	}
	return nil
}

// withDrain has clients of a mirror that stops open a new connection, which leads to another
// replica.
func (m *mirror) withDrain(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if m.draining.Load() {
			w.Header().Set("Connection", "close")
		}
		h.ServeHTTP(w, r)
	})
}

// stop ends everything in order, unless a second signal comes. For delay it accepts
// connections.
func (m *mirror) stop(signals <-chan os.Signal, delay time.Duration) error {
	done, hurry := make(chan error, 1), make(chan struct{})
	go func() { done <- task.Try("shutdown", func() error { return m.drain(delay, hurry) }) }()
	for {
		select {
		case err := <-done:
			return err
		case s := <-signals:
			if s != syscall.SIGHUP {
				close(hurry)
				return errStoppedAtOnce // files on disk are consistent at any moment
			}
		}
	}
}

// drain stops after delay, or once hurry is closed.
func (m *mirror) drain(delay time.Duration, hurry <-chan struct{}) error {
	m.draining.Store(true)
	select {
	case <-time.After(delay):
	case <-hurry:
	}
	m.endLong()
	ctx, cancel := context.WithTimeout(context.Background(), m.cfg.ShutdownTimeout)
	defer cancel()
	if err := m.main.Shutdown(ctx); err != nil {
		m.log.Warn("responses still running after shutdown_timeout are cut off", "error", err)
		_ = m.main.Close() // the listener is closed already, and errors of connections do not matter
	}
	m.current.swap(nil).close()
	m.retiring.Wait()
	err := m.store.Close()
	m.tracing.close(ctx, m.log)
	_ = m.admin.Close()
	if err != nil {
		return fmt.Errorf("close the cache: %w", err)
	}
	m.log.Info("stopped")
	return nil
}

// warnOfFullListener returns a function that logs, at most once a minute, that
// max_connections is reached.
func (m *mirror) warnOfFullListener() func() {
	var mu sync.Mutex // guards last
	var last time.Time
	limit := m.cfg.MaxConnections
	return func() {
		mu.Lock()
		defer mu.Unlock()
		if time.Since(last) < time.Minute {
			return
		}
		last = time.Now()
		m.log.Warn("max_connections reached, or nearly: idle connections are closed for new ones; otherwise clients wait",
			"max_connections", limit)
	}
}

// warnOfFewDescriptors warns if the limit on open files, which the runtime has raised as far as
// it may, is too low for the configuration.
func (m *mirror) warnOfFewDescriptors() {
	const others = 512 // the index, connections to upstreams, listeners
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return
	}
	// Two for each client: its connection and its blob. Two for each download: file and
	// connection.
	wanted := uint64(2*m.cfg.MaxConnections + 2*m.cfg.Storage.MaxFills + others)
	if limit.Cur < wanted {
		m.log.Warn("the limit on open files is low for max_connections; raise it (ulimit -n), or lower max_connections",
			"limit", limit.Cur, "wanted", wanted)
	}
}
