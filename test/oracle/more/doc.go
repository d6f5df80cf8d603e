// Package more puts the libraries of containerd and of podman, skopeo and cri-o to the
// oracle's test. They are large: this is a module of its own.
package more
