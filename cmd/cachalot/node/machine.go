package node

import (
	"os"
	"path/filepath"
)

// machine is where a machine's containerd has its socket and its folders.
type machine struct {
	name string // of what runs containerd
	// sign exists on such a machine.
	sign   string
	socket string // of containerd's CRI
	// folders are those that its containerd may read, the one to use first. The others are
	// used where only they are read.
	folders []string
	mend    string // what to do where none is read
	own     bool   // its containerd.service reads /etc/containerd/config.toml
}

// splitPath is what containerd 2.2 and later read by default, as one folder: the list of two
// folders that it is meant to be is not split when the transfer service pulls
// (containerd/containerd#12808).
const splitPath = "/etc/containerd/certs.d:/etc/docker/certs.d"

// machines are the known ones, the plain one last: K3s may run beside the containerd of Docker.
func machines() []machine {
	return []machine{
		{
			name: "RKE2", sign: "/var/lib/rancher/rke2/agent/etc/containerd", socket: "/run/k3s/containerd/containerd.sock",
			folders: []string{"/var/lib/rancher/rke2/agent/etc/containerd/certs.d"},
			mend:    "RKE2 reads it since January 2024 (v1.26.13, v1.27.10, v1.28.6, v1.29.1); upgrade it, or take config_path out of its config.toml.tmpl",
		},
		{
			name: "K3s", sign: "/run/k3s/containerd", socket: "/run/k3s/containerd/containerd.sock",
			folders: []string{"/var/lib/rancher/k3s/agent/etc/containerd/certs.d"},
			mend:    "K3s reads it since January 2024 (v1.26.13, v1.27.10, v1.28.6, v1.29.1); upgrade it, or take config_path out of its config.toml.tmpl; with another --data-dir name the folder",
		},
		{
			name: "k0s", sign: "/run/k0s", socket: "/run/k0s/containerd.sock",
			folders: []string{"/etc/k0s/containerd-certs.d", "/etc/containerd/certs.d", splitPath},
			mend:    "write config_path into a file in /etc/k0s/containerd.d; k0s then restarts containerd itself",
		},
		{
			name: "MicroK8s", sign: "/var/snap/microk8s", socket: "/var/snap/microk8s/common/run/containerd.sock",
			folders: []string{"/var/snap/microk8s/current/args/certs.d"},
			mend:    "set config_path in /var/snap/microk8s/current/args/containerd-template.toml, and restart MicroK8s",
		},
		{
			name: "containerd", sign: "/run/containerd", socket: "/run/containerd/containerd.sock",
			// The last two are those of GKE and Talos.
			folders: []string{"/etc/containerd/certs.d", splitPath, "/etc/containerd/hosts.d", "/etc/cri/conf.d/hosts"},
			mend:    "set config_path in containerd's configuration to this one folder, and restart containerd",
			own:     true,
		},
	}
}

// found returns the machine whose files are below root. Without any sign it is a plain one.
func found(root string) machine {
	all := machines()
	for _, m := range all {
		if _, err := os.Stat(filepath.Join(root, m.sign)); err == nil {
			return m
		}
	}
	return all[len(all)-1]
}
