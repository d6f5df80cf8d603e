package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// distributionVersion is the version of distribution in the table.
const distributionVersion = "v3.1.2"

// toolsFolder is the folder of installed tools, so that a second run starts at once.
func toolsFolder() (string, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(cache, "cachalot-bench")
	return dir, os.MkdirAll(dir, 0o700)
}

func command(ctx context.Context, dir string, env []string, args ...string) error {
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Dir, cmd.Env = dir, append(os.Environ(), env...)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w:\n%s", strings.Join(args, " "), err, bytes.TrimSpace(out))
	}
	return nil
}

// buildCachalot builds the module of the benchmark. go run caches the linked binary, which
// go build does not.
func buildCachalot(ctx context.Context, dir string) (string, error) {
	binary := filepath.Join(dir, "cachalot-here")
	return binary, command(ctx, "", nil, "go", "run", "-buildvcs=false", "-exec", "cp", "github.com/cachalot-registry/cachalot/cmd/cachalot", binary)
}

// installDistribution builds distribution's registry once.
func installDistribution(ctx context.Context) (string, error) {
	dir, err := toolsFolder()
	if err != nil {
		return "", err
	}
	binary := filepath.Join(dir, "registry")
	const module = "github.com/distribution/distribution/v3"
	out, err := exec.CommandContext(ctx, "go", "version", "-m", binary).Output()
	if err == nil && strings.Contains(string(out), "\tmod\t"+module+"\t"+distributionVersion+"\t") {
		return binary, nil
	}
	return binary, command(ctx, dir, []string{"GOBIN=" + dir, "GOFLAGS="}, "go", "install", module+"/cmd/registry@"+distributionVersion)
}

// findNginx returns the nginx in PATH, or unpacks Debian's without an installation.
func findNginx(ctx context.Context) (string, error) {
	for _, name := range []string{"nginx", "/usr/sbin/nginx"} {
		if path, err := exec.LookPath(name); err == nil {
			return path, nil
		}
	}
	dir, err := toolsFolder()
	if err != nil {
		return "", err
	}
	binary := filepath.Join(dir, "nginx", "usr", "sbin", "nginx")
	if _, err := os.Stat(binary); err == nil {
		return binary, nil
	}
	work, err := os.MkdirTemp("", "cachalot-bench-nginx-")
	if err != nil {
		return "", err
	}
	defer func() { _ = os.RemoveAll(work) }()
	download := []string{"apt-get", "download", "nginx"}
	if command(ctx, work, nil, download...) != nil { // the package lists may be missing
		if err := errors.Join(command(ctx, work, nil, "apt-get", "update"), command(ctx, work, nil, download...)); err != nil {
			return "", fmt.Errorf("there is no nginx in PATH and none to be had from Debian: %w", err)
		}
	}
	packages, err := filepath.Glob(filepath.Join(work, "nginx_*.deb"))
	if err != nil || len(packages) != 1 {
		return "", fmt.Errorf("apt-get download nginx brought %q", packages)
	}
	if err := command(ctx, work, nil, "dpkg", "-x", packages[0], filepath.Join(dir, "nginx")); err != nil {
		return "", err
	}
	return binary, command(ctx, work, nil, binary, "-v") // it may need other libraries
}
