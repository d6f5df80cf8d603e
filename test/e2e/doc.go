// Package e2e pulls through the real binary with real clients: dockerd 20.10 and
// 29 (and their builders), containerd, buildkitd, podman, buildah, skopeo, crane
// and go-containerregistry.
//
//	dockerd ... ──> tap ──> cachalot ──> distribution's registries ──> CDN
//
// All but the clients and cachalot is in the test's process: the tap, which notes
// what a client asks, and registries that count what crosses their wires. So each
// test says not only that a pull works but what it cost. The images' names are
// not ones that Docker Hub or quay.io has: a pull that works came through the
// mirror.
//
// TestDind has jobs of CI systems, each with a Docker daemon in a container. For
// them there is a machine of its own, a network namespace, which reaches
// registries by the names that they have in the world:
//
//	┌ host: dockerd 29 ──────────────────┐   ┌ the test ────────────────────┐
//	│ job ─> service ─> mirror, or ──────┼──>│ Docker Hub, quay.io, a CI's  │
//	│ (docker)  (dockerd in its image)   │   │ own registry, a proxy, DNS   │
//	└────────────────────────────────────┘   └──────────────────────────────┘
//
// The script run, beside this file, installs what the tests need and runs them,
// as root:
//
//	test/e2e/run
//	test/e2e/run -run 'TestPull/docker29' -v
package e2e
