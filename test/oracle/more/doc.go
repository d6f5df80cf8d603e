// Package more adds the libraries of containerd and of podman, skopeo and cri-o to the
// oracle's test. It is a separate module because they are large.
package more
