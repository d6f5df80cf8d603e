package dind

import (
	"cmp"
	"errors"
	"path/filepath"
	"slices"

	"github.com/cachalot-registry/cachalot/proxy/clients"
)

// buildersFile is the configuration that docker buildx create gives to a new builder by
// default, with the CA that it names.
const buildersFile = "buildkitd.default.toml"

// builders plans the configuration of builders that docker buildx creates: they
// inherit nothing from dockerd.
func (p *planner) builders() {
	dir := p.env.get("BUILDX_CONFIG")
	if dir == "" {
		dir = filepath.Join(cmp.Or(p.env.get("DOCKER_CONFIG"), filepath.Join(p.in.Home, ".docker")), "buildx")
	}
	path := filepath.Join(dir, buildersFile)
	if p.in.Root.exists(path) && !p.in.Root.ours(path) {
		p.say("%s exists and stays: new builders of docker buildx use it as it is", path)
		return
	}
	registries := slices.DeleteFunc(slices.Clone(p.in.Registries), p.set.isDirect)
	if len(registries) == 0 {
		return
	}
	content, err := clientFile("buildkit", clients.Settings{Mirror: p.set.mirror.String(), CAFile: p.caFile, Registries: registries}, "buildkitd.toml")
	if err != nil {
		reason := err.Error()
		if wrong, ok := errors.AsType[*clients.SettingError](err); ok {
			reason = wrong.Reason
		}
		p.warn("new builders of docker buildx do not ask the mirror: %s", reason)
		return
	}
	if p.write(path, []byte(marker+content), "so new builders of docker buildx do not ask the mirror") {
		p.say("new builders of docker buildx ask %s first for images of well-known registries: %s", p.set.mirror, path)
	}
}
