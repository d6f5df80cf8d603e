package main

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/cachalot-registry/cachalot"

// onlyIn maps a module, or a part of one, to the only package that may import it, besides
// packages below test.
func onlyIn() map[string]string {
	return map[string]string{
		"github.com/gorilla/mux":     module + "/proxy",
		"github.com/dgraph-io/":      module + "/storage/index",
		"github.com/spf13/":          module + "/cmd/cachalot",
		"github.com/goccy/go-yaml":   module + "/cmd/cachalot",
		"go.yaml.in/":                module + "/cmd/cachalot",
		module + "/proxy":            module + "/cmd/cachalot",
		"net/http/pprof":             module + "/proxy/admin",
		"github.com/sony/gobreaker/": module + "/upstream",
		// Only upstream handles credentials.
		"github.com/google/go-containerregistry/": module + "/upstream",
		"github.com/docker/":                      module + "/upstream",
		"github.com/aws/":                         module + "/upstream",
		"github.com/awslabs/":                     module + "/upstream",
		"github.com/Azure/":                       module + "/upstream",
		"github.com/AzureAD/":                     module + "/upstream",
		"cloud.google.com/":                       module + "/upstream",
		"golang.org/x/oauth2":                     module + "/upstream",
		// Other packages use the API, and get a tracer.
		"go.opentelemetry.io/otel/sdk":        module + "/cmd/cachalot",
		"go.opentelemetry.io/otel/exporters/": module + "/cmd/cachalot",
		// Rule.Validate defines patterns.
		"github.com/bmatcuk/doublestar/": module + "/proxy",
	}
}

// never maps a package to what it must not import.
func never() map[string][]string {
	return map[string][]string{
		module + "/storage": {"net/http", module + "/proxy", module + "/upstream", module + "/cmd"},
		// It uses a Source, and neither a disk nor HTTP.
		module + "/storage/download": {"net/http", module + "/storage", module + "/bounds", module + "/proxy", module + "/upstream", module + "/cmd"},
		// It stores records of blobs, not blobs.
		module + "/storage/index": {"net/http", module + "/bounds", module + "/proxy", module + "/upstream", module + "/cmd"},
		module + "/upstream":      {module + "/proxy", module + "/storage", module + "/cmd"},
		module + "/proxy":         {module + "/cmd", module + "/proxy/admin"},
		// These parse manifests and host names. They send no requests and write no responses.
		module + "/proxy/image": {"net/http", module + "/cmd", module + "/proxy"},
		module + "/proxy/hosts": {module, "net/http"},
		module + "/proxy/admin": {module + "/cmd"},
		// It talks to a running mirror, and does not read its storage.
		module + "/cmd/cachalot/ops": {module + "/storage", module + "/upstream"},
		// These have command-line arguments and no configuration.
		module + "/cmd/cachalot/dind": {"github.com/spf13/cobra", "github.com/goccy/go-yaml"},
		module + "/cmd/cachalot/node": {"github.com/spf13/cobra", "github.com/goccy/go-yaml"},
		// Only the mirror uses these.
		module + "/cmd/cachalot/config": {"github.com/spf13/", "net/http"},
		module + "/cmd/cachalot/server": {"github.com/spf13/", module + "/cmd/cachalot/ops", module + "/cmd/cachalot/dind", module + "/cmd/cachalot/node"},
		// It produces text only.
		module + "/proxy/clients": {module, "net/http"},
		// Every package may import it, and it imports none of them.
		module + "/hostport": {module, "net/http"},
	}
}

// listed is a package as the go command lists it.
type listed struct {
	ImportPath string
	Name       string
	Imports    []string
	ImportMap  map[string]string // for a source path that differs
}

// imported returns this module's packages and all their imports, by path.
func imported(t *testing.T) map[string]listed {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", "list", "-deps", "-json=ImportPath,Name,Imports,ImportMap", "./...")
	cmd.Dir = "../.."
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, stderr.String())
	}
	packages := map[string]listed{}
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p listed
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return packages
		} else if err != nil {
			t.Fatal(err)
		}
		packages[p.ImportPath] = p
	}
}

// The import table of the design.
func TestImports(t *testing.T) {
	t.Parallel()
	packages := imported(t)
	for _, p := range packages {
		if !within(p.ImportPath, module) {
			continue
		}
		isTest := within(p.ImportPath, module+"/test")
		for _, imported := range p.Imports {
			for part, owner := range onlyIn() {
				if !isTest && within(imported, part) && !within(p.ImportPath, owner) && !within(p.ImportPath, part) {
					t.Errorf("%s imports %s, which only %s may", p.ImportPath, imported, owner)
				}
			}
			for _, part := range never()[p.ImportPath] {
				if within(imported, part) && imported != module+"/hostport" {
					t.Errorf("%s imports %s, which it must not know", p.ImportPath, imported)
				}
			}
		}
		if slices.Contains([]string{"util", "utils", "common", "pkg", "helper", "helpers"}, p.Name) {
			t.Errorf("%s: a package is named for its subject", p.ImportPath)
		}
	}
	for _, agent := range []string{"dind", "node"} { // these run without a server
		all := map[string]bool{}
		linked(all, packages, module+"/cmd/cachalot/"+agent)
		if !all[module+"/proxy/clients"] || all[module+"/storage"] || all[module+"/upstream"] || all[module+"/proxy"] {
			t.Errorf("cachalot %s contains the mirror", agent)
		}
	}
	binary := map[string]bool{}
	linked(binary, packages, module+"/cmd/cachalot")
	if len(binary) < 500 {
		t.Errorf("the binary has %d packages: not all were found", len(binary))
	}
	for path := range binary {
		for _, part := range []string{
			// Its storage drivers add some 280 packages.
			"github.com/distribution/distribution/v3/registry/storage",
			"github.com/distribution/distribution/v3/registry/handlers",
			"testing", "net/http/httptest", module + "/upstream/upstreamtest",
		} {
			if within(path, part) {
				t.Errorf("the binary contains %s", path)
			}
		}
	}
}

// linked adds a package and all its imports.
func linked(all map[string]bool, packages map[string]listed, path string) {
	if all[path] {
		return
	}
	all[path] = true
	p := packages[path]
	for _, imported := range p.Imports {
		if other, ok := p.ImportMap[imported]; ok {
			imported = other
		}
		linked(all, packages, imported)
	}
}

// within reports whether path is part or lies below it. A part that ends in a slash is a prefix.
func within(path, part string) bool {
	return path == part || strings.HasPrefix(path, strings.TrimSuffix(part, "/")+"/")
}
