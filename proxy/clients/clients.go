// Package clients makes the configurations of the programs that pull through the mirror.
// The command "cachalot client", the mirror's page at /, and the packages dind and node
// use the same table of programs.
package clients

import (
	"fmt"
	"slices"
	"strings"
)

// Client is a program that can be made to pull through the mirror.
type Client struct {
	Name  string // as the command line calls it
	Title string
	About string // what is configured, in a line

	files func(v view) ([]File, error)
}

// File is a part of a client's configuration.
type File struct {
	Path    string // where it goes; "" for lines of shell
	Use     string // what to do with it, in a line
	Content string
}

// All returns the clients that [Client.Config] can configure.
func All() []Client {
	t := newTemplates()
	return []Client{
		{"docker", "Docker", "Docker Hub with every version of dockerd, all registries from 28 on", t.docker},
		{"containerd", "containerd", "hosts.toml, for Kubernetes nodes, nerdctl and ctr", t.containerd},
		{"k3s", "K3s and RKE2", "registries.yaml of every node; for RKE2 too", t.k3s},
		{"talos", "Talos Linux", "a patch of the machine configuration", t.talos},
		{"kind", "kind", "a cluster's configuration, and its nodes' hosts.toml", t.kind},
		{"buildkit", "BuildKit", "buildkitd.toml, for builders of docker buildx too", t.buildkit},
		{"podman", "Podman, CRI-O, Buildah, Skopeo", "registries.conf; for CRI-O, Buildah and Skopeo too", t.podman},
		{"kaniko", "kaniko", "flags, or the environment", t.kaniko},
		{"gitlab-ci", "GitLab CI", "the docker:dind service of jobs", t.gitlab},
		{"github-actions", "GitHub Actions", "Docker's set-up actions", t.github},
		{"woodpecker", "Woodpecker CI", "settings of plugin-docker-buildx", t.woodpecker},
		{"drone", "Drone CI", "settings of plugins/docker", t.drone},
	}
}

// Named returns the client of that name, if there is one.
func Named(name string) (Client, bool) {
	clients := All()
	i := slices.IndexFunc(clients, func(c Client) bool { return c.Name == name })
	if i < 0 {
		return Client{}, false
	}
	return clients[i], true
}

// Config returns the files that make the client pull through the mirror. Its
// errors are of type [*SettingError].
func (c Client) Config(s Settings) ([]File, error) {
	v, err := s.view()
	if err != nil {
		return nil, err
	}
	return c.files(v)
}

func (t templates) docker(v view) ([]File, error) {
	files := t.authority(v, "/etc/docker/certs.d", "Versions before 28, and those without the containerd image store, look for the mirror's CA here.")
	if v.HasHub() {
		files = append(files, t.file("daemon.json.tmpl", v, "/etc/docker/daemon.json",
			"Add this to what is there, unless dockerd has the flag --registry-mirror, and restart dockerd."))
	}
	v.Referrers = true
	return append(files, t.hosts(v, "/etc/docker/certs.d", "dockerd 29 and later with the containerd image store, and 28 if changed as it says; it is read at each pull, and counts in place of registry-mirrors.")...), nil
}

func (t templates) containerd(v view) ([]File, error) {
	return t.hosts(v, "/etc/containerd/certs.d", "Read at each pull, if config_path in containerd's configuration names the folder certs.d."), nil
}

func (t templates) k3s(v view) ([]File, error) {
	return []File{t.file("registries.yaml.tmpl", v, "/etc/rancher/k3s/registries.yaml",
		"RKE2 has it in /etc/rancher/rke2. Restart the service on each node.")}, nil
}

func (t templates) talos(v view) ([]File, error) {
	if v.CAFile != "" && len(v.CA) == 0 {
		return nil, &SettingError{"ca", "Talos needs the certificates themselves; name a PEM file that can be read here"}
	}
	return []File{t.file("talos.yaml.tmpl", v, "cachalot.yaml", "Apply it with talosctl patch machineconfig --patch @cachalot.yaml")}, nil
}

func (t templates) kind(v view) ([]File, error) {
	files := []File{t.file("kind.yaml.tmpl", v, "kind.yaml", "Create the cluster with kind create cluster --config kind.yaml, in the folder that certs.d is in.")}
	return append(files, t.hosts(v, "certs.d", "The nodes mount it.")...), nil
}

func (t templates) buildkit(v view) ([]File, error) {
	if err := v.atRoot("BuildKit"); err != nil {
		return nil, err
	}
	return []File{t.file("buildkitd.toml.tmpl", v, "/etc/buildkit/buildkitd.toml",
		"Restart buildkitd; or give the file to docker buildx create --buildkitd-config.")}, nil
}

func (t templates) podman(v view) ([]File, error) {
	if err := v.atRoot("Podman"); err != nil {
		return nil, err
	}
	files := t.authority(v, "/etc/containers/certs.d", "They look for the mirror's CA here.")
	return append(files, t.file("registries.conf.tmpl", v, "/etc/containers/registries.conf.d/cachalot.conf",
		"Podman, Buildah and Skopeo read it at each pull; CRI-O when it is reloaded.")), nil
}

func (t templates) kaniko(v view) ([]File, error) {
	if err := v.atRoot("kaniko"); err != nil {
		return nil, err
	}
	return []File{
		t.file("kaniko.args.tmpl", v, "", "Add the build's own flags."),
		t.file("kaniko.env.tmpl", v, "", "The executor's environment can stand in for --registry-map, not for the other flags."),
	}, nil
}

func (t templates) gitlab(v view) ([]File, error) {
	files := t.authority(v, "/etc/docker/certs.d", "On the runner's host.")
	if v.HasHub() {
		files = append(files, t.file("gitlab-ci.yml.tmpl", v, ".gitlab-ci.yml", "Docker Hub, for the jobs of a project."))
	}
	files = append(files, t.file("gitlab-runner.toml.tmpl", v, "/etc/gitlab-runner/config.toml",
		"All registries, for every job: merge this into the runner's entry. Jobs must not set DOCKER_DRIVER, which turns the containerd image store off."))
	v.Referrers = true
	return append(files, t.hosts(v, "/etc/docker/certs.d", "On the runner's host; docker:dind of 29 and later reads it.")...), nil
}

func (t templates) github(v view) ([]File, error) {
	if err := v.atRoot("BuildKit"); err != nil {
		return nil, err
	}
	use := "Steps of a job: the first for docker pull and run, the second for builds."
	if v.CAFile != "" {
		use += " The runner must trust the CA already."
	}
	return []File{t.file("github-actions.yml.tmpl", v, ".github/workflows/build.yml", use)}, nil
}

func (t templates) woodpecker(v view) ([]File, error) {
	if err := v.atRoot("BuildKit"); err != nil {
		return nil, err
	}
	return []File{t.file("woodpecker.yaml.tmpl", v, ".woodpecker.yaml", "Add these settings to the step that builds.")}, nil
}

func (t templates) drone(v view) ([]File, error) {
	if !v.HasHub() {
		return nil, &SettingError{"registry", "plugins/docker can mirror docker.io only"}
	}
	return []File{t.file("drone.yml.tmpl", v, ".drone.yml", "Add this setting to the step that builds. For every step, let the runner set PLUGIN_MIRROR, by DRONE_RUNNER_ENVIRON.")}, nil
}

// hosts returns the hosts.toml files of containerd below a folder.
func (t templates) hosts(v view, dir, use string) []File {
	var files []File
	for _, name := range v.Names("_default") {
		files = append(files, t.file("hosts.toml.tmpl", v, fmt.Sprintf("%s/%s/hosts.toml", dir, HostFolder(name)), use))
	}
	return files
}

// HostFolder returns the name of a registry's folder in containerd's config_path, in the form
// without a colon, which containerd looks for first: host_port_ with a port.
func HostFolder(registry string) string {
	if i := strings.LastIndexByte(registry, ':'); i > strings.LastIndexByte(registry, ']') {
		return registry[:i] + "_" + registry[i+1:] + "_"
	}
	return registry
}

// authority returns the commands that put the mirror's CA where a program looks for it by host.
func (t templates) authority(v view, dir, use string) []File {
	if v.CAFile == "" {
		return nil
	}
	v.Dir = dir
	return []File{t.file("ca.sh.tmpl", v, "", use)}
}

// dockerHub is the only registry that some clients can mirror.
const dockerHub = "docker.io"

// HasHub reports whether Docker Hub is among the registries.
func (v view) HasHub() bool { return slices.Contains(v.Registries, dockerHub) }

// Names returns the registries, or wildcard for all of them.
func (v view) Names(wildcard string) []string {
	if v.All {
		return []string{wildcard}
	}
	return v.Registries
}

// NodeUserAgent is the User-Agent of "cachalot node", which sends GET /v2/ from each node of a
// cluster every few seconds.
const NodeUserAgent = "cachalot-node"
