// Package e2e pulls through the real binary with real clients: dockerd 20.10 and
// 29, containerd, buildkitd, podman, buildah, skopeo and crane.
//
//	dockerd ... ──> cachalot ──> distribution's registry, in the test's process
//
// The registry stands for Docker Hub and counts what crosses its wire, so each
// test says not only that a pull works but what it cost. The image's name is
// not one that Docker Hub has: a pull that works came through the mirror.
//
// The script run, beside this file, installs what the tests need and runs them,
// as root:
//
//	test/e2e/run
//	test/e2e/run -run 'TestPull/docker29' -v
package e2e
