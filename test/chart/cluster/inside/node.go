package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// tree prints all files in a folder: mode, owner, path and content.
func tree(w io.Writer, root string) error {
	err := filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := os.Lstat(path)
		if err != nil {
			return err
		}
		relative, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		content := ""
		switch {
		case info.Mode().IsRegular():
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			content = fmt.Sprintf(" %q", b)
		case info.Mode()&fs.ModeSymlink != 0:
			if content, err = os.Readlink(path); err != nil {
				return err
			}
			content = " -> " + content
		}
		owner := info.Sys().(*syscall.Stat_t)
		_, err = fmt.Fprintf(w, "%v %d:%d %s%s\n", info.Mode(), owner.Uid, owner.Gid, relative, content)
		return err
	})
	if errors.Is(err, fs.ErrNotExist) {
		_, err = fmt.Fprintln(w, "not there")
	}
	return err
}

func write(path string, content io.Reader) error {
	b, err := io.ReadAll(content)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, b, 0o644)
}

// forget removes an image from a container runtime. It waits until the image's containers
// have ended, because they hold its layers, unless now is set.
func forget(ctx context.Context, socket, ref string, now bool) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	images, containers := cri.NewImageServiceClient(conn), cri.NewRuntimeServiceClient(conn)
	for {
		status, err := images.ImageStatus(ctx, &cri.ImageStatusRequest{Image: &cri.ImageSpec{Image: ref}})
		if err != nil {
			return err
		}
		if status.GetImage() == nil {
			return nil
		}
		running, err := removeEnded(ctx, containers, status.GetImage().GetId())
		if err != nil {
			return err
		}
		if running > 0 && !now {
			select {
			case <-ctx.Done():
				return fmt.Errorf("%d containers of %s run: %w", running, ref, ctx.Err())
			case <-time.After(100 * time.Millisecond):
			}
			continue
		}
		if _, err := images.RemoveImage(ctx, &cri.RemoveImageRequest{Image: &cri.ImageSpec{Image: status.GetImage().GetId()}}); err != nil {
			return err
		}
	}
}

func removeEnded(ctx context.Context, containers cri.RuntimeServiceClient, image string) (running int, err error) {
	list, err := containers.ListContainers(ctx, &cri.ListContainersRequest{})
	if err != nil {
		return 0, err
	}
	for _, c := range list.GetContainers() {
		if c.GetImageRef() != image && c.GetImageId() != image {
			continue
		}
		if c.GetState() != cri.ContainerState_CONTAINER_EXITED {
			running++
			continue
		}
		if _, err := containers.RemoveContainer(ctx, &cri.RemoveContainerRequest{ContainerId: c.GetId()}); err != nil {
			return 0, err
		}
	}
	return running, nil
}

// found is the kernel's view of a pod's process.
type found struct {
	Status map[string]string `json:"status"` // Uid, Gid, Groups, CapEff, CapBnd, NoNewPrivs and Seccomp, as in /proc/PID/status
	Root   string            `json:"root"`   // the error of a write to its root file system
	Folder string            `json:"folder"` // mode and owner of one of its folders
}

// process inspects the process of an executable in a pod, and tries to write to its root
// file system with its rights.
func process(pod, executable, folder string) error {
	processes, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return err
	}
	for _, dir := range processes {
		// Some processes end in between.
		cgroup, _ := os.ReadFile(filepath.Join(dir, "cgroup"))
		if exe, _ := os.Readlink(filepath.Join(dir, "exe")); exe != executable ||
			!strings.Contains(strings.ReplaceAll(string(cgroup), "_", "-"), pod) {
			continue
		}
		status, err := os.ReadFile(filepath.Join(dir, "status"))
		if err != nil {
			return err
		}
		f := found{Status: map[string]string{}, Root: "none: it can be written"}
		for line := range strings.Lines(string(status)) {
			key, value, _ := strings.Cut(line, ":")
			switch key {
			case "Uid", "Gid", "Groups", "CapEff", "CapBnd", "NoNewPrivs", "Seccomp":
				f.Status[key] = strings.Join(strings.Fields(value), " ")
			}
		}
		if err := os.WriteFile(filepath.Join(dir, "root/written"), nil, 0o600); err != nil {
			f.Root = errors.Unwrap(err).Error()
		}
		info, err := os.Stat(filepath.Join(dir, "root", folder))
		if err != nil {
			return err
		}
		owner := info.Sys().(*syscall.Stat_t)
		f.Folder = fmt.Sprintf("%v %d:%d", info.Mode(), owner.Uid, owner.Gid)
		return writeJSON(os.Stdout, f)
	}
	return fmt.Errorf("pod %s runs no %s", pod, executable)
}
