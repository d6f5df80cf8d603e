package main

import (
	"os"
	"slices"
	"strings"
	"testing"
)

// TestDockerContext: a build in a container gets all that the binary is made of.
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
