package dind

import (
	"slices"
	"strings"
)

// mirror makes dockerd pull through the mirror: by hosts.toml for all registries, by
// --registry-mirror for Docker Hub if dockerd does not read hosts.toml.
func (p *planner) mirror() {
	reason := p.classic()
	if p.dropsDriver(reason) {
		p.env = p.env.without(driverVariable)
		p.say("%s=overlay2 is removed: with it, docker pull uses the mirror for Docker Hub only; %s=true keeps it", driverVariable, keepVariable)
	} else if reason == "" {
		reason = p.classicBy(p.env.get(driverVariable), driverVariable+"="+p.env.get(driverVariable))
	}
	hosts := p.in.Version.readsHosts() && p.hosts()
	flag := p.registryMirror(hosts && reason == "")
	if flag && !p.in.Version.readsHosts() {
		p.plainBuilds()
	}

	switch {
	case hosts && reason == "":
		p.say("dockerd asks %s first for images of all registries, then the registry itself", p.set.mirror)
		p.sayOthers()
	case hosts:
		p.say("builds ask %s first for images of all registries, then the registry itself", p.set.mirror)
		p.sayOthers()
		if flag {
			p.warn("docker pull and docker run ask it for images of Docker Hub only: %s", reason)
		} else {
			p.warn("docker pull and docker run do not ask it: %s", reason)
		}
	case !p.in.Version.readsHosts() && flag:
		p.say("dockerd asks %s first for images of Docker Hub; %s can mirror no other registry, 29 can", p.set.mirror, p.in.Version)
	case p.kept && reason == "":
		// hosts has logged a warning.
	case p.kept && flag:
		p.say("docker pull and docker run ask %s first for images of Docker Hub", p.set.mirror)
	case flag:
		p.say("dockerd asks %s first for images of Docker Hub", p.set.mirror)
	default:
		p.warn("dockerd does not ask %s", p.set.mirror)
	}
}

// registryMirror adds the flag for the classic image store. It reports whether dockerd has the
// mirror as a registry mirror. unused: dockerd reads hosts.toml instead.
func (p *planner) registryMirror(unused bool) bool {
	url := p.set.mirror.String()
	there, where := p.flags.registryMirrors, "among the arguments"
	if !p.flags.given["registry-mirror"] {
		there, where = p.json.RegistryMirrors, "in "+p.json.path
	}
	switch {
	case p.flags.given["registry-mirror"], p.json.has["registry-mirrors"]:
		if slices.ContainsFunc(there, func(m string) bool { return strings.TrimRight(m, "/") == url }) {
			return true
		}
		if unused {
			p.warn("the registry mirrors %s are not asked: hosts.toml counts in their place", where)
		} else {
			p.warn("the registry mirrors %s stay, and are asked for Docker Hub; add %s there", where, url)
		}
		return false
	case p.set.isDirect(hub):
		return false
	case p.set.mirror.Path != "" && !p.in.Version.takesPath():
		p.warn("%s allows no mirror with a path; write a URL without one, or use a base image of 24.0.8 or later", p.in.Version)
		return false
	}
	p.add("--registry-mirror=" + url)
	return true
}

// plainBuilds makes builds use a mirror without TLS. Before 28, BuildKit in dockerd sends https
// to such a mirror too, unless the mirror, with its scheme, is among the insecure registries
// (RegistryHosts in daemon/daemon.go).
func (p *planner) plainBuilds() {
	url := p.set.mirror.Scheme + "://" + p.set.mirror.Host
	there := slices.Concat(p.flags.insecure, p.json.InsecureRegistries)
	if p.set.mirror.Scheme != "http" || slices.Contains(there, url) {
		return
	}
	if p.json.has["insecure-registries"] {
		p.warn("builds with BuildKit do not ask the mirror: add %s to insecure-registries in %s", url, p.json.path)
		return
	}
	p.add("--insecure-registry=" + url)
}

// sayOthers logs the registries that are pulled without the mirror, despite hosts.toml.
func (p *planner) sayOthers() {
	var names []string
	for _, d := range p.others() {
		names = append(names, d.name+" ("+d.why+")")
	}
	if len(names) > 0 {
		p.say("images of %s are pulled without it", strings.Join(names, ", "))
	}
	for _, line := range p.set.odd {
		p.warn("%s", line)
	}
	p.sayKept()
}
