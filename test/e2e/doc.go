// Package e2e pulls through the real binary with real clients: dockerd 20.10 and
// 29 (and their builders), containerd, buildkitd, podman, buildah, skopeo, crane
// and go-containerregistry.
//
//	dockerd ... ──> tap ──> cachalot ──> distribution's registries ──> CDN
//
// The clients and cachalot are processes. The rest runs in the test's process: the tap,
// which records the clients' requests, and registries that count the traffic on their
// wires. So each test checks a pull and also its cost. Docker Hub and quay.io do not have
// images with these names: a pull that succeeds came through the mirror.
//
// TestDind runs jobs of CI systems, each with a Docker daemon in a container. They run on a
// separate host, a network namespace, which reaches registries by their public names:
//
//	┌ host: dockerd 29 ──────────────────┐   ┌ the test ────────────────────┐
//	│ job ─> service ─> mirror, or ──────┼──>│ Docker Hub, quay.io, a CI's  │
//	│ (docker)  (dockerd in its image)   │   │ own registry, a proxy, DNS   │
//	└────────────────────────────────────┘   └──────────────────────────────┘
//
// The script run in this folder installs what the tests need and runs them as root:
//
//	test/e2e/run
//	test/e2e/run -run 'TestPull/docker29' -v
package e2e
