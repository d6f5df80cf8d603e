package main

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// unpinned returns the images in a Dockerfile that have no digest, except stages and
// scratch. An argument has its default value.
func unpinned(dockerfile string) []string {
	var found, stages []string
	arguments := map[string]string{}
	check := func(image string) {
		image = regexp.MustCompile(`\$\{(\w+)\}|\$(\w+)`).ReplaceAllStringFunc(image, func(name string) string { return arguments[strings.Trim(name, "${}")] })
		pinned := regexp.MustCompile(`^[a-z0-9./-]+:[\w.-]+@sha256:[0-9a-f]{64}$`).MatchString(image)
		if !pinned && image != "scratch" && !slices.Contains(stages, strings.ToLower(image)) {
			found = append(found, image)
		}
	}
	for line := range strings.Lines(strings.ReplaceAll(dockerfile, "\\\n", " ")) {
		if syntax, ok := strings.CutPrefix(strings.TrimSpace(line), "# syntax="); ok { // the image of a frontend
			check(syntax)
		}
		words := strings.Fields(line)
		if len(words) < 2 {
			continue
		}
		switch words[0] {
		case "ARG":
			name, value, _ := strings.Cut(words[1], "=")
			arguments[name] = value
		case "FROM":
			words = slices.DeleteFunc(words, func(w string) bool { return strings.HasPrefix(w, "--") })
			check(words[1])
			if len(words) == 4 {
				stages = append(stages, strings.ToLower(words[3]))
			}
		case "COPY", "ADD", "RUN":
			for _, from := range regexp.MustCompile(`(?:--from=|--mount=\S*\bfrom=)([^\s,]+)`).FindAllStringSubmatch(line, -1) {
				check(from[1])
			}
		}
	}
	return found
}

// TestDockerfilePinned: base images have a digest.
func TestDockerfilePinned(t *testing.T) {
	t.Parallel()
	dockerfile, err := os.ReadFile("../../Dockerfile")
	if err != nil {
		t.Fatal(err)
	}
	if found := unpinned(string(dockerfile)); len(found) > 0 {
		t.Errorf("not by digest, as NAME:TAG@sha256:...: %q", found)
	}
	digest := "@sha256:" + strings.Repeat("0123456789abcdef", 4)
	for text, want := range map[string][]string{
		"FROM golang:1.26": {"golang:1.26"},
		"ARG A=golang:1.26\nFROM ${A} AS build\nFROM scratch\nCOPY --from=build / /":           {"golang:1.26"},
		"ARG A=golang:1" + digest + "\nFROM --platform=$BUILDPLATFORM $A AS Build\nFROM build": nil,
		"FROM golang" + digest:                 {"golang" + digest}, // without a tag, the version is unclear
		"FROM golang:1" + digest[:50]:          {"golang:1" + digest[:50]},
		"FROM ${NOTHING}":                      {""},
		"FROM scratch\nCOPY --from=alpine:3 /": {"alpine:3"},
		"FROM scratch\nRUN --mount=type=bind,from=alpine:3,target=/a \\\n true": {"alpine:3"},
		"# syntax=docker/dockerfile:1\nFROM scratch":                            {"docker/dockerfile:1"},
	} {
		if found := unpinned(text); !slices.Equal(found, want) {
			t.Errorf("%q: not by digest are %q, want %q", text, found, want)
		}
	}
}

// TestDockerContext: a build in a container gets all sources of the binary.
func TestDockerContext(t *testing.T) {
	t.Parallel()
	ignored, err := os.ReadFile("../../.dockerignore")
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(string(ignored), "\n")
	packages := imported(t)
	binary := map[string]bool{}
	linked(binary, packages, module+"/cmd/cachalot")
	ours := 0
	for path := range binary {
		rest, ok := strings.CutPrefix(path, module+"/")
		if !ok {
			continue
		}
		ours++
		if folder, _, _ := strings.Cut(rest, "/"); !slices.Contains(lines, "!"+folder) {
			t.Errorf(".dockerignore leaves %s out: add !%s", path, folder)
		}
	}
	if ours < 5 {
		t.Errorf("%d packages of ours: not all were found", ours)
	}
}
