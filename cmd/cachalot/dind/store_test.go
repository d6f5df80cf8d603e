package dind

import (
	"slices"
	"strings"
	"testing"
)

func TestDriver(t *testing.T) {
	t.Parallel()
	const (
		json    = "/etc/docker/daemon.json"
		dropped = "DOCKER_DRIVER=overlay2 is removed: with it, docker pull uses the mirror for Docker Hub only; CACHALOT_KEEP_DRIVER=true keeps it"
	)
	gone := map[string]string{driverVariable: ""}
	asked := []string{hubFlag}
	on := map[string]string{json: `{"features": {"containerd-snapshotter": true}}`}
	because := func(reason string) []string { return classic(hubOnly + reason) }
	first := func(line string) []string { return slices.Insert(usual(), 0, line) }
	checkAll(t, []scene{
		{name: "overlay2", env: []string{overlay2}, wantArgs: asked, wantEnv: gone, wantLog: first(dropped)},
		{name: "overlay2, unknown version", version: "dev", env: []string{overlay2}, wantArgs: asked, wantEnv: gone, wantLog: first(dropped)},
		{name: "not kept", env: []string{overlay2, "CACHALOT_KEEP_DRIVER=false"}, wantArgs: asked, wantEnv: gone, wantLog: first(dropped)},
		{name: "kept", env: []string{overlay2, "CACHALOT_KEEP_DRIVER=true"}, wantArgs: asked, wantLog: because("DOCKER_DRIVER=overlay2")},
		{name: "chosen", env: []string{"DOCKER_DRIVER=vfs"}, wantArgs: asked, wantLog: because("DOCKER_DRIVER=vfs")},
		{name: "a snapshotter", env: []string{"DOCKER_DRIVER=overlayfs"}, wantArgs: asked, wantLog: usual()},
		{name: "argument", args: []string{"-Ds", "overlay2"}, wantArgs: []string{"-Ds", "overlay2", hubFlag}, wantLog: because("--storage-driver=overlay2 is given")},
		{name: "a snapshotter's argument", args: []string{"--storage-driver=native"}, wantArgs: []string{"--storage-driver=native", hubFlag}, wantLog: usual()},
		{
			name: "daemon.json", env: []string{overlay2}, there: map[string]string{json: `{"storage-driver": "btrfs"}`},
			wantArgs: asked, wantLog: because("storage-driver is btrfs in /etc/docker/daemon.json"),
		},
		{name: "from before", there: map[string]string{"/var/lib/docker/overlay2/l/x": ""}, wantArgs: asked, wantLog: because("/var/lib/docker/overlay2 has images of the classic store")},
		{name: "from before, empty", there: map[string]string{"/var/lib/docker/overlay2/": ""}, wantArgs: asked, wantLog: usual()},
		{name: "from before, vfs", there: map[string]string{"/var/lib/docker/vfs/x": ""}, wantArgs: asked, wantLog: usual()},
		{
			name: "from before, elsewhere", args: []string{"--data-root=/data"}, there: map[string]string{"/data/zfs/x": "", "/var/lib/docker/overlay2/x": ""},
			wantArgs: []string{"--data-root=/data", hubFlag}, wantLog: because("/data/zfs has images of the classic store"),
		},
		{
			name: "from before, by daemon.json", there: map[string]string{json: `{"data-root": "/data"}`, "/data/btrfs/x": ""},
			wantArgs: asked, wantLog: because("/data/btrfs has images of the classic store"),
		},
		{
			name: "from before, rootless", uid: 1000, there: map[string]string{"/home/me/.local/share/docker/fuse-overlayfs/x": ""}, wantArgs: asked,
			wantLog: []string{
				buildsAsk, hubOnly + "/home/me/.local/share/docker/fuse-overlayfs has images of the classic store",
				"new builders of docker buildx ask http://mirror:5000 first for images of well-known registries: /home/me/.docker/buildx/buildkitd.default.toml",
			},
		},
		{name: "feature on", env: []string{overlay2}, there: map[string]string{json: on[json], "/var/lib/docker/overlay2/x": ""}, wantArgs: asked, wantEnv: gone, wantLog: first(dropped)},
		{
			name: "feature off", there: map[string]string{json: `{"features": {"containerd-snapshotter": false}}`}, env: []string{overlay2},
			wantArgs: asked, wantLog: because("the feature containerd-snapshotter is off in /etc/docker/daemon.json"),
		},
		{
			name: "feature off by argument", args: []string{"--feature", "cdi", "--feature=containerd-snapshotter=false"},
			wantArgs: []string{"--feature", "cdi", "--feature=containerd-snapshotter=false", hubFlag}, wantLog: because("the feature containerd-snapshotter is off among the arguments"),
		},
		{
			name: "userns-remap", args: []string{"--userns-remap", "default"}, wantArgs: []string{"--userns-remap", "default", hubFlag},
			wantLog: because("userns-remap needs the classic image store"),
		},
		{name: "28", version: "28.5.2", env: []string{overlay2}, wantArgs: asked, wantLog: because("dockerd 28.5.2 has the containerd image store only with the feature containerd-snapshotter")},
		{name: "28, feature on", version: "28.5.2", there: on, wantArgs: asked, wantLog: usual()},
		{
			name: "28, feature by argument", version: "28.5.2", args: []string{"--feature=containerd-snapshotter"},
			wantArgs: []string{"--feature=containerd-snapshotter", hubFlag}, wantLog: usual(),
		},
		{
			name: "27, feature on", version: "27.5.1", env: []string{overlay2}, there: on, wantArgs: []string{hubFlag, plainFlag},
			wantLog: []string{strings.Replace(oldHub, "20.10.24", "27.5.1", 1), buildersAsk},
		},
		{name: "before 28", version: "20.10.24", env: []string{overlay2}, wantArgs: []string{hubFlag, plainFlag}, wantLog: []string{oldHub, buildersAsk}},
		{
			name: "Docker Hub direct", env: []string{"DOCKER_DRIVER=vfs", "CACHALOT_DIRECT=docker.io"},
			wantLog: classic("images of docker.io (CACHALOT_DIRECT) are pulled without it", "warning: docker pull and docker run do not ask it: DOCKER_DRIVER=vfs"),
		},
		{
			name: "other mirrors", env: []string{"DOCKER_DRIVER=vfs"}, there: map[string]string{json: `{"registry-mirrors": ["http://other"]}`},
			wantLog: slices.Insert(classic("warning: docker pull and docker run do not ask it: DOCKER_DRIVER=vfs"), 0,
				"warning: the registry mirrors in /etc/docker/daemon.json stay, and are asked for Docker Hub; add http://mirror:5000 there"),
		},
	})
}
