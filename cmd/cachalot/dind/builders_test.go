package dind

import (
	"slices"
	"strings"
	"testing"
)

func TestBuilders(t *testing.T) {
	t.Parallel()
	command := []string{"sh"}
	line := func(path string) []string {
		return []string{"new builders of docker buildx ask http://mirror:5000 first for images of well-known registries: " + path}
	}
	const name = "/buildkitd.default.toml"
	content := marker + "[registry.\"docker.io\"]\n  mirrors = [\"mirror:5000/docker.io\"]\n[registry.\"quay.io\"]\n  mirrors = [\"mirror:5000/quay.io\"]\n[registry.\"mirror:5000\"]\n  http = true\n"
	checkAll(t, []scene{
		{name: "home", args: command, wantArgs: command, wantFiles: map[string]string{buildxFile: content}, wantLog: line(buildxFile)},
		{name: "BUILDX_CONFIG", args: command, env: []string{"BUILDX_CONFIG=/b", "DOCKER_CONFIG=/d"}, wantArgs: command, wantFiles: map[string]string{"/b" + name: content}, wantLog: line("/b" + name)},
		{name: "DOCKER_CONFIG", args: command, env: []string{"DOCKER_CONFIG=/d"}, wantArgs: command, wantFiles: map[string]string{"/d/buildx" + name: content}, wantLog: line("/d/buildx" + name)},
		{name: "again", args: command, there: map[string]string{buildxFile: marker}, wantArgs: command, wantFiles: map[string]string{buildxFile: content}, wantLog: line(buildxFile)},
		{
			name: "a user's", args: command, there: map[string]string{buildxFile: "debug = true\n"}, wantArgs: command, wantFiles: map[string]string{},
			wantLog: []string{buildxFile + " exists and stays: new builders of docker buildx use it as it is"},
		},
		{
			name: "nowhere to write", args: command, there: map[string]string{"/root/.docker": "a file"}, wantArgs: command, wantFiles: map[string]string{},
			wantLog: []string{"warning: " + buildxFile + " cannot be written, so new builders of docker buildx do not ask the mirror"},
		},
		{name: "all direct", args: command, env: []string{"CACHALOT_DIRECT=docker.io quay.io"}, wantArgs: command, wantFiles: map[string]string{}},
		{
			name: "the mirror is a registry", args: command, env: []string{"CACHALOT_MIRROR=http://quay.io"}, wantArgs: command,
			wantFiles: map[string]string{buildxFile: "[registry.\"docker.io\"]\n  mirrors = [\"quay.io/docker.io\"]\n[registry.\"quay.io\"]\n  http = true\n"},
			wantLog:   []string{"new builders of docker buildx ask http://quay.io first for images of well-known registries: " + buildxFile},
		},
	})
}

func TestNoHome(t *testing.T) {
	t.Parallel()
	in := scene{args: []string{"-D"}, uid: 1000}.input(t)
	in.Home = ""
	plan, err := NewPlan(in)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"warning: there is no home folder for hosts.toml, so the mirror is not asked for all registries; set HOME",
		"dockerd asks http://mirror:5000 first for images of Docker Hub",
		"warning: there is no home folder for buildkitd.default.toml, so new builders of docker buildx do not ask the mirror; set HOME",
	}
	if len(plan.Files) > 0 || !slices.Equal(plan.Log, want) {
		t.Errorf("%d files, and the log:\n%s", len(plan.Files), strings.Join(plan.Log, "\n"))
	}
}
