package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/cachalot-registry/cachalot/upstream/upstreamtest"
)

// rival is a server under test: cachalot, or a server to compare with.
type rival struct {
	name string
	url  string // the URL before /v2/
	pid  int
	// stop ends the process and removes its files; nil for an external rival.
	stop func()
}

// kind starts a rival: a new process with an empty folder.
type kind struct {
	name   string
	static bool // it has no upstream
	again  bool // another build of cachalot
	start  func(ctx context.Context, b *bench, o serverOptions) (*rival, error)
}

// serverOptions are the options of a new rival.
type serverOptions struct {
	upstream string // its URL
	// content is for servers that have no upstream; nil for others.
	content *content
	tls     bool
}

// launch starts args in a new folder below the benchmark's. configure fills the folder.
func (b *bench) launch(ctx context.Context, name string, o serverOptions, configure func(dir, address string) ([]string, error)) (*rival, error) {
	address, release, err := upstreamtest.HoldPort()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	dir, err := os.MkdirTemp(b.dir, name+"-")
	if err != nil {
		release()
		return nil, err
	}
	fail := func(err error) (*rival, error) {
		release()
		return nil, errors.Join(fmt.Errorf("%s: %w", name, err), os.RemoveAll(dir))
	}
	args, err := configure(dir, address)
	if err != nil {
		return fail(err)
	}
	p, err := spawn(ctx, b.cores.server, filepath.Join(dir, "log"), nil, args...)
	if err != nil {
		return fail(err)
	}
	scheme := "http://"
	if o.tls {
		scheme = "https://"
	}
	r := &rival{name: name, url: scheme + address, pid: p.pid(), stop: func() {
		p.stop()
		release()
		_ = os.RemoveAll(dir) // it is below b.dir, whose removal reports errors
	}}
	if err := p.ready(ctx, r.url+"/v2/"); err != nil {
		r.stop()
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return r, nil
}

func write(file, text string) error { return os.WriteFile(file, []byte(text), 0o600) }

// cachalotKind runs a binary of cachalot with the default metrics and request log.
func cachalotKind(name, binary string) kind {
	return kind{name: name, start: func(ctx context.Context, b *bench, o serverOptions) (*rival, error) {
		return b.launch(ctx, name, o, func(dir, address string) ([]string, error) {
			file := filepath.Join(dir, "config.yml")
			return []string{binary, "serve", "--config", file}, write(file, cachalotConfig(b, dir, address, o))
		})
	}}
}

func cachalotConfig(b *bench, dir, address string, o serverOptions) string {
	tls := ""
	if o.tls {
		tls = fmt.Sprintf("tls: {certificate: %s, key: %s}\n", b.certificate, b.key)
	}
	return tls + fmt.Sprintf(`listen: %s
admin: {listen: "127.0.0.1:0"}
storage: {path: %s, min_free: 0}
tags: {fresh_for: 1h}
upstreams: {docker.io: {url: %q, allow_addresses: [127.0.0.0/8]}}
`, address, filepath.Join(dir, "cache"), o.upstream)
}

// nginxKind serves files with one worker and Debian's settings: sendfile, tcp_nopush and an
// access log.
func nginxKind(binary string) kind {
	const name = "nginx"
	return kind{name: name, static: true, start: func(ctx context.Context, b *bench, o serverOptions) (*rival, error) {
		return b.launch(ctx, name, o, func(dir, address string) ([]string, error) {
			if err := o.content.writeFiles(filepath.Join(dir, "files")); err != nil {
				return nil, err
			}
			user, tls, ssl := "", "", ""
			if os.Geteuid() == 0 {
				user = "user root;" // else its worker may not read the folder
			}
			if o.tls {
				tls, ssl = " ssl", fmt.Sprintf("ssl_certificate %s; ssl_certificate_key %s; ssl_protocols TLSv1.2 TLSv1.3;", b.certificate, b.key)
			}
			file := filepath.Join(dir, "nginx.conf")
			return []string{binary, "-p", dir, "-e", "stderr", "-c", file}, write(file, fmt.Sprintf(`
%s
daemon off;
worker_processes 1;
pid %[2]s/pid;
events { worker_connections 1024; }
http {
	sendfile on;
	tcp_nopush on;
	types_hash_max_size 2048;
	keepalive_timeout 300;
	keepalive_requests 1000000000; # the others have no such limit
	access_log %[2]s/access.log;
	client_body_temp_path %[2]s/body;
	proxy_temp_path %[2]s/proxy;
	fastcgi_temp_path %[2]s/fastcgi;
	uwsgi_temp_path %[2]s/uwsgi;
	scgi_temp_path %[2]s/scgi;
	default_type application/octet-stream;
	server {
		listen %[3]s%[4]s;
		%[5]s
		root %[2]s/files;
	}
}
`, user, dir, address, tls, ssl))
		})
	}}
}

// distributionKind is distribution's registry as a pull-through cache, with its example
// configuration.
func distributionKind(binary string) kind {
	const name = "distribution"
	return kind{name: name, start: func(ctx context.Context, b *bench, o serverOptions) (*rival, error) {
		return b.launch(ctx, name, o, func(dir, address string) ([]string, error) {
			tls := ""
			if o.tls {
				tls = fmt.Sprintf("\n  tls: {certificate: %s, key: %s}", b.certificate, b.key)
			}
			file := filepath.Join(dir, "config.yml")
			return []string{binary, "serve", file}, write(file, fmt.Sprintf(`version: 0.1
log: {fields: {service: registry}}
storage:
  cache: {blobdescriptor: inmemory}
  filesystem: {rootdirectory: %s}
  tag: {concurrencylimit: 8}
http:
  addr: %s
  headers: {X-Content-Type-Options: [nosniff]}%s
proxy: {remoteurl: %q}
health: {storagedriver: {enabled: true, interval: 10s, threshold: 3}}
`, filepath.Join(dir, "cache"), address, tls, o.upstream))
		})
	}}
}

// external is a rival that the user runs. It takes part in warm work, with content that was
// pulled or pushed before.
type external struct {
	name string
	url  *url.URL
	pid  int
}

// parseExternal reads "NAME=URL,pid=PID".
func parseExternal(s string) (external, error) {
	const want = "want NAME=http://HOST:PORT,pid=PID"
	name, rest, ok := strings.Cut(s, "=")
	address, pid, ok2 := strings.Cut(rest, ",pid=")
	if !ok || !ok2 || name == "" {
		return external{}, fmt.Errorf("rival %q: %s", s, want)
	}
	u, err := url.Parse(address)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Port() == "" {
		return external{}, fmt.Errorf("rival %q: %s", s, want)
	}
	id, err := strconv.Atoi(pid)
	if err != nil || id <= 0 {
		return external{}, fmt.Errorf("rival %q: %s", s, want)
	}
	if err := unix.Kill(id, 0); err != nil {
		return external{}, fmt.Errorf("rival %q: no process %d that is yours: %w", s, id, err)
	}
	if ip := net.ParseIP(u.Hostname()); u.Hostname() != "localhost" && (ip == nil || !ip.IsLoopback()) {
		return external{}, fmt.Errorf("rival %q: it must be on this machine, at 127.0.0.1, or it is the network that is measured", s)
	}
	return external{name, u, id}, nil
}

// join pins the rival to the server's processor, as the others are. Its stop restores the
// processors.
func (e external) join(b *bench) (*rival, error) {
	before, err := allowed(e.pid)
	if err == nil {
		err = pin(e.pid, b.cores.server)
	}
	if err != nil {
		return nil, fmt.Errorf("rival %s: %w", e.name, err)
	}
	return &rival{name: e.name, url: strings.TrimSuffix(e.url.String(), "/"), pid: e.pid, stop: func() {
		_ = pin(e.pid, before) // it may have ended
	}}, nil
}
