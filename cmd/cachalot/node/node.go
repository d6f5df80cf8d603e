package node

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/cachalot-registry/cachalot/proxy/clients"
)

const (
	askEvery   = 10 * time.Second
	askTimeout = 2 * time.Second
	// patience is how many requests in a row must fail before the mirror is removed.
	patience = 3
)

// defaultName is the folder for registries that have none of their own.
const defaultName = "_default"

// Config is the configuration of a node.
type Config struct {
	Root   string // where the machine's root folder is mounted; "": /
	Socket string // of containerd's CRI; "": that of the machine; [NoSocket]: containerd is not asked
	Dir    string // containerd's config_path; "": that of the machine
	// Configure: where containerd does not read Dir, its configuration is changed, and it is
	// started again.
	Configure bool
	// Taint is removed from the Kubernetes node once the machine pulls through the mirror; "":
	// none.
	Taint string
	// ExitAfter is how long the mirror may not answer before Run ends with an error; 0: it
	// does not end. Kubernetes starts the container again, with the present address of the
	// mirror's Service in its environment.
	ExitAfter  time.Duration
	Owner      string   // names the block, and tells it from another mirror's
	Mirror     string   // its URL, as the node reaches it
	CA         string   // a file with certificates (PEM) for an https mirror; "": those that the node trusts
	Registries []string // those that use the mirror; none: all that have no folder of their own
}

// NoSocket is a [Config].Socket: whether containerd reads the files is not looked at.
const NoSocket = "none"

// ConfigError is about a field of [Config].
type ConfigError struct {
	Field  string // as the command's flags: owner, dir, ...
	Reason string // what is wrong, and what to write
}

func (e *ConfigError) Error() string { return e.Field + ": " + e.Reason }

// Node is a machine with a containerd. Run alone changes it.
type Node struct {
	cfg     Config
	machine machine
	cri     *containerd      // nil: not asked
	dir     string           // the folder of the files, as containerd names it
	blocks  map[string]block // for dir, by the registry's folder
	proof   proof
	log     *slog.Logger
	ask     func(context.Context) error
	restart func(context.Context) error // restarts containerd
	failed  error                       // why configure has restored containerd's configuration: once is enough
	said    map[string]string           // the last message about a subject
	// untainted: the taint has been removed.
	untainted bool
	status    atomic.Pointer[Status]
}

// Status says whether the machine pulls through the mirror.
type Status struct {
	Mirror     error // nil: the mirror answers
	Files      error // nil: the files have the mirror
	Containerd error // nil: containerd reads the files, or is not asked
}

// Err returns nil if the machine pulls through the mirror, and otherwise why not.
func (s Status) Err() error { return cmp.Or(s.Containerd, s.Mirror, s.Files) }

// proof is what [containerd.reads] has last returned.
type proof struct {
	err     error
	at      time.Time
	started string // the containerd that was asked
}

const (
	// A proof that containerd reads the files is taken again after provenFor: its
	// configuration may be reloaded. One that it does not is, after unprovenFor.
	provenFor   = 15 * time.Minute
	unprovenFor = time.Minute
)

var (
	ownerRegexp = regexp.MustCompile(`^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$`)
	// A manifest of Kubernetes may have [$(HOST_IP)], because the address may be IPv6. The
	// brackets of an IPv4 address are removed.
	bracketsRegexp = regexp.MustCompile(`^(https?://)\[([0-9.]+)\]`)
)

// New checks a configuration. Errors about a field are of type [*ConfigError].
func New(cfg Config, log *slog.Logger) (*Node, error) {
	switch {
	case !ownerRegexp.MatchString(cfg.Owner):
		return nil, &ConfigError{"owner", "write lower-case letters, digits, dots and hyphens"}
	case cfg.Dir != "" && !filepath.IsAbs(cfg.Dir):
		return nil, &ConfigError{"config-path", "write the full path of the folder in config_path of containerd's configuration"}
	case cfg.Socket != "" && cfg.Socket != NoSocket && !filepath.IsAbs(cfg.Socket):
		return nil, &ConfigError{"containerd", "write the full path of containerd's socket, or none"}
	}
	cfg.Root = cmp.Or(cfg.Root, "/")
	cfg.Mirror = strings.TrimRight(bracketsRegexp.ReplaceAllString(cfg.Mirror, "$1$2"), "/")
	n := &Node{cfg: cfg, machine: found(cfg.Root), log: log, said: map[string]string{}}
	if cfg.Dir != "" {
		n.machine.folders = []string{cfg.Dir}
	}
	if cfg.Socket != NoSocket {
		n.cri = &containerd{root: cfg.Root, socket: cmp.Or(cfg.Socket, n.machine.socket)}
	}
	n.ask = n.get
	n.restart = func(ctx context.Context) error { return restartUnit(ctx, cfg.Root, "containerd.service") }
	return n, n.use(n.machine.folders[0])
}

// use sets the folder of the files.
func (n *Node) use(dir string) error {
	s := clients.Settings{Mirror: n.cfg.Mirror, Registries: n.cfg.Registries}
	if n.cfg.CA != "" {
		s.CAFile = filepath.Join(dir, (&folder{owner: n.cfg.Owner}).authority())
	}
	if len(s.Registries) == 0 {
		s.Registries, s.All = []string{"docker.io"}, true
	}
	client, _ := clients.Named("containerd")
	files, err := client.Config(s)
	if wrong, ok := errors.AsType[*clients.SettingError](err); ok {
		return &ConfigError{wrong.Setting, wrong.Reason}
	}
	if err != nil {
		return err
	}
	blocks := map[string]block{}
	for _, f := range files {
		content, err := parse([]byte(f.Content))
		if err != nil {
			return err
		}
		blocks[filepath.Base(filepath.Dir(f.Path))] = block{n.cfg.Owner, content.hosts[0], f.Content}
	}
	n.dir, n.blocks = dir, blocks
	return nil
}

// Run keeps the blocks in their files while the mirror answers, until ctx ends. Then it removes
// them; its error names the files where that failed.
func (n *Node) Run(ctx context.Context) error {
	tick := time.NewTicker(askEvery)
	defer tick.Stop()
	n.sweep()
	for failures := 0; ; {
		n.prove(ctx)
		now := Status{Containerd: n.proof.err}
		if now.Mirror = n.ask(ctx); now.Mirror == nil {
			failures = 0
			n.put()
		} else if failures++; failures >= patience && ctx.Err() == nil {
			n.say("mirror", slog.LevelWarn, "the mirror does not answer: containerd asks the registries themselves", "mirror", n.cfg.Mirror, "error", now.Mirror)
			if err := n.remove(); err != nil {
				n.say("remove", slog.LevelError, "cannot remove the mirror from a file", "error", err)
			}
		}
		if now.Files = n.checkFiles(); now.Files == nil {
			now.Mirror = nil // a failure or two do not count
		}
		n.status.Store(&now)
		if now.Err() == nil {
			n.untaint(ctx)
		}
		if n.cfg.ExitAfter > 0 && failures >= patience && time.Duration(failures)*askEvery >= n.cfg.ExitAfter {
			return errors.Join(fmt.Errorf("%s has not answered for %s", n.cfg.Mirror, n.cfg.ExitAfter), n.end())
		}
		select {
		case <-ctx.Done():
			n.log.Info("removed the mirror from containerd's configuration", "config_path", n.dir)
			return n.end()
		case <-tick.C:
		}
	}
}

// end leaves the machine as it was before Run.
func (n *Node) end() error {
	err := n.remove()
	if n.dir == splitPath {
		n.dir = n.machine.folders[0]
	}
	n.tidy()
	return errors.Join(err, n.restoreSettings())
}

// untaint removes the taint, once.
func (n *Node) untaint(ctx context.Context) {
	if n.cfg.Taint == "" || n.untainted {
		return
	}
	k, err := inCluster()
	if err == nil {
		err = k.untaint(ctx, n.cfg.Taint)
	}
	if n.untainted = err == nil; !n.untainted {
		n.say("taint", slog.LevelError, "pods wait for this node's taint to go", "error", err)
	}
}

// Status returns what Run has last found.
func (n *Node) Status() Status {
	if s := n.status.Load(); s != nil {
		return *s
	}
	return Status{Files: errors.New("the mirror has not been asked yet")}
}

// Check returns nil if containerd reads the files and they have the mirror, and otherwise why
// not. It does not ask the mirror, and leaves what another process's Run does.
func (n *Node) Check(ctx context.Context) error {
	if n.cri != nil {
		dir, err := n.cri.reads(ctx, n.candidates())
		n.removeSplitPath()
		if err == nil {
			err = n.use(dir)
		}
		if err != nil {
			return n.explained(ctx, err)
		}
	}
	return n.checkFiles()
}

// checkFiles returns nil if the files have the blocks, and otherwise an error with those that
// do not.
func (n *Node) checkFiles() error {
	f, err := n.open()
	if err != nil {
		return err
	}
	defer f.close()
	var missing []error
	for name, b := range n.blocks {
		content, _, err := f.read(name + "/hosts.toml")
		if err == nil && atLine(content, b.text()) < 0 {
			err = errors.New("it does not have the mirror")
		}
		if err != nil {
			missing = append(missing, fmt.Errorf("%s: %w", n.file(name), err))
		}
	}
	return errors.Join(missing...)
}

// get sends GET /v2/ to the mirror, as clients do first.
func (n *Node) get(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	// The node's own CA certificates cannot be seen from here, and containerd verifies the
	// mirror's certificate itself. This request only checks whether the mirror answers.
	trust := &tls.Config{InsecureSkipVerify: true} //nolint:gosec // see above
	if n.cfg.CA != "" {
		pem, err := os.ReadFile(n.cfg.CA)
		if err != nil {
			return fmt.Errorf("read the CA: %w", err)
		}
		trust = &tls.Config{RootCAs: x509.NewCertPool(), MinVersion: tls.VersionTLS12}
		if !trust.RootCAs.AppendCertsFromPEM(pem) {
			return fmt.Errorf("%s has no certificate (PEM)", n.cfg.CA)
		}
	}
	transport := &http.Transport{TLSClientConfig: trust, DisableKeepAlives: true}
	defer transport.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, n.cfg.Mirror+"/v2/", http.NoBody)
	if err != nil {
		return err
	}
	req.Header.Set("User-Agent", clients.NodeUserAgent)
	resp, err := transport.RoundTrip(req) // no redirects: the mirror itself must answer
	if e, ok := errors.AsType[*net.OpError](err); ok {
		return fmt.Errorf("%s: %w", e.Op, e.Err) // without our port, which differs each time
	}
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("GET /v2/: %s", resp.Status)
	}
	return nil
}

// put writes the blocks into their files.
func (n *Node) put() {
	failed, direct, err := n.apply(n.blocks)
	if err != nil {
		failed = map[string]error{"": err}
	}
	for _, name := range slices.Sorted(maps.Keys(failed)) {
		n.say("file "+name, slog.LevelWarn, "file not changed: containerd may not ask the mirror", "path", n.file(name), "error", failed[name])
	}
	maps.DeleteFunc(n.said, func(subject, _ string) bool {
		name, ok := strings.CutPrefix(subject, "file ")
		return ok && failed[name] == nil
	})
	if len(failed) == 0 {
		n.say("mirror", slog.LevelInfo, "containerd asks the mirror", "mirror", n.cfg.Mirror, "config_path", n.dir)
	}
	if _, ok := n.blocks[defaultName]; ok && len(direct) > 0 {
		n.say("direct", slog.LevelInfo, "some registries have folders of their own: containerd does not ask the mirror for them", "registries", strings.Join(direct, " "))
	}
}

// remove removes the blocks from all files.
func (n *Node) remove() error {
	failed, _, err := n.apply(nil)
	for _, name := range slices.Sorted(maps.Keys(failed)) {
		err = errors.Join(err, fmt.Errorf("%s: %w", n.file(name), failed[name]))
	}
	return err
}

// apply writes the blocks and the CA, or removes them. It returns the errors by the folder's
// name, and the registries that do not use the mirror.
func (n *Node) apply(blocks map[string]block) (failed map[string]error, direct []string, err error) {
	f, err := n.open()
	if err != nil {
		return nil, nil, err
	}
	defer f.close()
	var pem []byte
	if n.cfg.CA != "" && len(blocks) > 0 {
		if pem, err = os.ReadFile(n.cfg.CA); err != nil {
			return nil, nil, fmt.Errorf("read the CA: %w", err)
		}
		// The CA is written before the files that name it, and removed after them.
		if err := f.setAuthority(pem); err != nil {
			return nil, nil, fmt.Errorf("write the CA: %w", err)
		}
	}
	failed, direct = f.apply(blocks), f.direct()
	if pem == nil {
		err = f.setAuthority(nil)
	}
	return failed, direct, err
}

func (n *Node) file(name string) string {
	if name == "" {
		return n.dir
	}
	return filepath.Join(n.dir, name, "hosts.toml")
}

// say logs a message about a subject, unless it is the same as the last one about it.
func (n *Node) say(subject string, level slog.Level, message string, args ...any) {
	if text := fmt.Sprint(message, args); n.said[subject] != text {
		n.said[subject] = text
		n.log.Log(context.Background(), level, message, args...) //nolint:sloglint // callers pass constants
	}
}
