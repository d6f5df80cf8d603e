package dind

import (
	"fmt"
	"path/filepath"
	"slices"
)

// Input is what a plan is made from. Files are read below Root.
type Input struct {
	Args       []string // of the base's entrypoint
	Env        []string // as os.Environ has it
	UID        int
	Home       string  // "": none
	Version    version // of dockerd
	Root       Root
	Registries []string // for BuildKit, which has no wildcard for all
}

// Plan is what to do before the base's entrypoint starts.
type Plan struct {
	Files []File
	Gone  []string // paths of files to remove, with their folders if these are empty then
	Args  []string // for the base's entrypoint
	Env   []string
	Log   []string // what was decided and why, a line each

	probe *probe // nil: no request to the mirror
}

// File is a file to write, unless it has the content already.
type File struct {
	Path    string
	Content []byte
	Append  bool // to the existing content
}

// planner makes a [Plan].
type planner struct {
	in     Input
	set    settings
	env    environ
	flags  flags
	added  []string // flags for dockerd
	json   daemonJSON
	kept   bool   // a user's certs.d/_default stays
	caFile string // the CA file that configurations name for an https mirror; "": none
	plan   Plan
}

// NewPlan decides what to do. Its error joins those of type [*VariableError].
func NewPlan(in Input) (Plan, error) {
	p := planner{in: in, env: environ(in.Env)}
	at, daemon := flagsAt(in.Args)
	if p.env.get(mirrorVariable) == "" {
		p.say("%s is not set, so nothing is changed; write the mirror's URL there, such as http://cachalot.example:5000", mirrorVariable)
		return Plan{Args: in.Args, Env: in.Env, Log: p.plan.Log}, nil
	}
	var err error
	if p.set, err = readSettings(in); err != nil {
		return Plan{}, err
	}
	p.keepAuthority()
	if daemon {
		p.daemon(in.Args[at:])
	}
	p.builders()
	p.plan.Args = slices.Clone(in.Args)
	if len(p.added) > 0 {
		p.plan.Args = slices.Insert(p.plan.Args, at+p.flags.end, p.added...)
	}
	p.plan.Env = p.env
	return p.plan, nil
}

// daemon plans for a dockerd with the given flags.
func (p *planner) daemon(args []string) {
	var flagsErr, jsonErr error
	if p.flags, flagsErr = parseFlags(args); flagsErr != nil {
		// A flag without its value would take our first flag for its value.
		p.warn("nothing is set up, and dockerd will not start: %v", flagsErr)
		return
	}
	path := p.flags.configFile
	if !p.flags.given["config-file"] {
		path = filepath.Join(p.configDir(), "daemon.json")
	}
	if p.json, jsonErr = readDaemonJSON(p.in.Root, path); jsonErr != nil {
		p.warn("dockerd will not start: %v", jsonErr)
	}
	p.mirror()
	p.trustAuthority()
	p.bypassProxy()
	p.fitMTU()
	p.plan.probe = &probe{mirror: p.set.mirror, ca: p.set.ca}
}

// add adds flags for dockerd.
func (p *planner) add(flags ...string) { p.added = append(p.added, flags...) }

func (p *planner) say(format string, args ...any) {
	p.plan.Log = append(p.plan.Log, fmt.Sprintf(format, args...))
}

func (p *planner) warn(format string, args ...any) { p.say("warning: "+format, args...) }

// write plans to write a file, if that is possible. Otherwise it logs a warning, with the
// consequence.
func (p *planner) write(path string, content []byte, otherwise string) bool {
	if !filepath.IsAbs(path) {
		p.warn("there is no home folder for %s, %s; set HOME", filepath.Base(path), otherwise)
		return false
	}
	if !p.in.Root.writable(path) {
		p.warn("%s cannot be written, %s", path, otherwise)
		return false
	}
	p.plan.Files = append(p.plan.Files, File{Path: path, Content: content})
	return true
}

// configHome returns the folder of the user's configuration files; a relative path: there is
// none.
func (p *planner) configHome() string { return p.userDir("XDG_CONFIG_HOME", ".config") }

func (p *planner) userDir(variable, name string) string {
	if dir := p.env.get(variable); filepath.IsAbs(dir) {
		return dir
	}
	return filepath.Join(p.in.Home, name)
}

// configDir returns dockerd's configuration folder. The base runs dockerd by RootlessKit for
// all users except root.
func (p *planner) configDir() string {
	if p.in.UID == 0 {
		return "/etc/docker"
	}
	return filepath.Join(p.configHome(), "docker")
}

// dataRoot returns dockerd's data folder.
func (p *planner) dataRoot() string {
	switch {
	case p.flags.dataRoot != "":
		return p.flags.dataRoot
	case p.json.DataRoot != "":
		return p.json.DataRoot
	case p.in.UID == 0:
		return "/var/lib/docker"
	default:
		return filepath.Join(p.userDir("XDG_DATA_HOME", ".local/share"), "docker")
	}
}
