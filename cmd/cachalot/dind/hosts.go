package dind

import (
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"

	"github.com/cachalot-registry/cachalot/proxy/clients"
)

// marker is the first line of the files that this package writes.
const marker = "# Made by cachalot dind, and made anew at each start. Without this line it stays as it is.\n"

// ours reports whether this package wrote the file.
func (r Root) ours(path string) bool {
	b, err := r.read(path)
	return err == nil && strings.HasPrefix(string(b), strings.TrimSuffix(marker, "\n"))
}

// hosts plans the hosts.toml files that make dockerd use the mirror for all registries except
// the direct ones. It reports whether they take effect.
func (p *planner) hosts() bool {
	p.insecureRegistries()
	dir := p.certsDir()
	standard := filepath.Join(dir, "_default")
	if p.in.Root.exists(standard) && !p.in.Root.ours(filepath.Join(standard, "hosts.toml")) {
		p.warn("%s exists and stays: dockerd asks the servers in it, not %s", standard, p.set.mirror)
		p.kept = true
		return false
	}
	s := clients.Settings{Mirror: p.set.mirror.String(), CAFile: p.caFile, Registries: []string{hub}, All: true}
	client := "docker"
	if !p.in.Version.knowsReferrers() {
		client = "containerd" // its file is otherwise the same
	}
	content, err := clientFile(client, s, "_default/hosts.toml")
	if err != nil {
		p.warn("no hosts.toml: %v", err)
		return false
	}
	if !p.write(filepath.Join(standard, "hosts.toml"), []byte(marker+content), "so the mirror is not asked for all registries") {
		return false
	}
	p.host(dir, p.set.mirror.Host, p.itself())
	for _, d := range p.others() {
		p.host(dir, d.name, fmt.Sprintf("# %s: %s is asked directly, without a mirror.\n", d.why, d.name))
	}
	p.clear(dir)
	return true
}

// clear plans to remove the files that an earlier start wrote for registries that were direct
// then, or for another mirror.
func (p *planner) clear(dir string) {
	for _, name := range p.in.Root.names(dir) {
		path := filepath.Join(dir, name, "hosts.toml")
		made := slices.ContainsFunc(p.plan.Files, func(f File) bool { return f.Path == path })
		if !made && p.in.Root.ours(path) {
			p.plan.Gone = append(p.plan.Gone, path)
		}
	}
}

func (p *planner) certsDir() string { return filepath.Join(p.configDir(), "certs.d") }

// others returns the direct registries except the mirror, which has its own file.
func (p *planner) others() []direct {
	return slices.DeleteFunc(slices.Clone(p.set.direct), func(d direct) bool { return d.name == p.set.mirror.Host })
}

// host plans a registry's own hosts.toml, so that dockerd does not read _default. An existing
// folder has this effect already, and a hosts.toml in it would make dockerd ignore the folder's
// certificates.
func (p *planner) host(dir, name, content string) {
	for _, folder := range hostFolders(name) {
		if folder = filepath.Join(dir, folder); p.in.Root.exists(folder) && !p.in.Root.ours(filepath.Join(folder, "hosts.toml")) {
			return
		}
	}
	file := filepath.Join(dir, hostFolders(name)[0], "hosts.toml")
	p.write(file, []byte(marker+content), "so "+name+" is asked after the mirror")
}

// hostFolders returns the names under which dockerd looks for a registry's folder in certs.d.
func hostFolders(name string) []string {
	return slices.Compact([]string{clients.HostFolder(name), name})
}

// itself returns the mirror's own hosts.toml, for images that are named by the mirror's host.
func (p *planner) itself() string {
	content := fmt.Sprintf("server = %q\n", p.set.mirror.Scheme+"://"+p.set.mirror.Host)
	if p.caFile != "" {
		content += fmt.Sprintf("ca = [%q]\n", p.caFile)
	}
	return content
}

// insecureRegistries makes insecure registries direct: dockerd tries http, and ignores bad
// certificates, only if hosts.toml names no mirror.
func (p *planner) insecureRegistries() {
	list, why := p.flags.insecure, "--insecure-registry"
	if list == nil {
		list, why = p.json.InsecureRegistries, "insecure-registries"
	}
	for _, name := range list {
		if _, rest, ok := strings.Cut(name, "://"); ok {
			name = rest
		}
		prefix, err := netip.ParsePrefix(name)
		switch {
		case err == nil && !prefix.Addr().IsLoopback(): // loopback is insecure in any case
			p.warn("behind the mirror, dockerd asks registries in %s by https alone; name those of %s that have none in %s", prefix, why, directVariable)
		case err != nil && invalidRegistry(name) == "":
			p.set.add(canonical(name), why)
		}
	}
}

// sayKept names the registries that a user has configured in certs.d.
func (p *planner) sayKept() {
	dir := p.certsDir()
	var kept []string
	for _, name := range p.in.Root.names(dir) {
		if name != "_default" && !slices.Contains(hostFolders(p.set.mirror.Host), name) && !p.in.Root.ours(filepath.Join(dir, name, "hosts.toml")) {
			kept = append(kept, name)
		}
	}
	if len(kept) > 0 {
		p.say("images of %s are pulled as the existing files in %s say", strings.Join(kept, ", "), dir)
	}
}
