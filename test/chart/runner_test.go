package chart

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	gobuild "go/build"
	"go/parser"
	"go/token"
	"go/types"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/BurntSushi/toml"
	core "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"
)

const (
	runnerFile = dir + "/values-gitlab-runner.yaml"
	examples   = "../../docs/examples/"
	// gitlabRunner has the types of config.toml in GitLab Runner 19.4.
	gitlabRunner = "gitlab.com/gitlab-org/gitlab-runner@v1.11.1-0.20260903214710-fc1f1862bd91"
)

// runnerValues has the used keys of GitLab's chart gitlab-runner 0.86.0.
type runnerValues struct {
	GitlabURL      string `json:"gitlabUrl"`
	Concurrent     int
	RBAC           struct{ Create bool } `json:"rbac"`
	ServiceAccount struct{ Create bool } `json:"serviceAccount"`
	Metrics        struct{ Enabled bool }
	Runners        struct{ Name, Secret, Config string }
}

func readFile(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// submatch returns the submatches of a pattern.
func submatch(t *testing.T, pattern, text string) []string {
	t.Helper()
	found := regexp.MustCompile(pattern).FindStringSubmatch(text)
	if found == nil {
		t.Fatalf("no %s in\n%s", pattern, text)
	}
	return found[1:]
}

func parseTOML[T any](t *testing.T, text string) (v T) {
	t.Helper()
	if _, err := toml.Decode(text, &v); err != nil {
		t.Fatal(err)
	}
	return v
}

// inCluster is the mirror's URL for pods, with the installation of docs/kubernetes.md.
func inCluster(t *testing.T) string {
	t.Helper()
	named := submatch(t, `helm install (\S+) charts/cachalot --namespace (\S+)`, readFile(t, "../../docs/kubernetes.md"))
	r, err := tryRenderIn(t, loadChart(t), named[1], named[0], "")
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range all[*core.Service](rendered{objects: decode(t, r.Manifest)}) {
		if s.Spec.ClusterIP != core.ClusterIPNone {
			return fmt.Sprintf("%s://%s.%s.svc:%d", s.Spec.Ports[0].Name, s.Name, s.Namespace, s.Spec.Ports[0].Port)
		}
	}
	t.Fatal("no Service for clients")
	return ""
}

// TestRunnerValues: the file for GitLab's chart has the settings that test/e2e tests in
// kubernetes.toml, and the mirror of docs/kubernetes.md.
func TestRunnerValues(t *testing.T) {
	text := readFile(t, runnerFile)
	var v runnerValues
	if err := yaml.UnmarshalStrict([]byte(text), &v); err != nil {
		t.Fatal(err)
	}
	if !v.RBAC.Create || !v.ServiceAccount.Create {
		t.Error("the runner may not make pods")
	}
	if made := submatch(t, `create secret generic (\S+)`, text)[0]; made != v.Runners.Secret {
		t.Errorf("the comment makes the Secret %s, and the chart gets %s", made, v.Runners.Secret)
	}
	if strings.Contains(v.Runners.Config, "{{") {
		t.Error("the chart would evaluate a template")
	}

	want := readFile(t, examples+"gitlab-runner/kubernetes.toml")
	want = strings.ReplaceAll(want, "http://cachalot.example:5000", inCluster(t))
	wanted, got := parseTOML[map[string]any](t, want), parseTOML[map[string]any](t, v.Runners.Config)
	runner := wanted["runners"].([]map[string]any)[0]
	if runner["url"] != v.GitlabURL || runner["name"] != v.Runners.Name || runner["executor"] != "kubernetes" {
		t.Errorf("%s, %s at %s is another runner", v.Runners.Name, runner["executor"], v.GitlabURL)
	}
	for _, key := range []string{"name", "url", "token", "executor"} { // set by the chart
		delete(runner, key)
	}
	kubernetes := runner["kubernetes"].(map[string]any)
	if namespace := submatch(t, `helm install --namespace (\S+)`, text)[0]; kubernetes["namespace"] != namespace {
		t.Errorf("the jobs' namespace is %v, and the comment's %s", kubernetes["namespace"], namespace)
	}
	delete(kubernetes, "namespace")
	if !reflect.DeepEqual(got, wanted) {
		t.Errorf("runners.config is\n%v\nand kubernetes.toml\n%v", got, wanted)
	}
}

// TestRunnerService: the image and the alias match those in the jobs' variables.
func TestRunnerService(t *testing.T) {
	type service struct{ Name, Alias string }
	var job struct {
		Default struct{ Services []service }
	}
	if err := yaml.Unmarshal([]byte(readFile(t, examples+"gitlab-ci/dind.gitlab-ci.yml")), &job); err != nil {
		t.Fatal(err)
	}
	var v runnerValues
	if err := yaml.Unmarshal([]byte(readFile(t, runnerFile)), &v); err != nil {
		t.Fatal(err)
	}
	c := parseTOML[struct {
		Runners []struct{ Kubernetes struct{ Services []service } }
	}](t, v.Runners.Config)
	if got := c.Runners[0].Kubernetes.Services; !slices.Equal(got, job.Default.Services) {
		t.Errorf("services %v, want %v", got, job.Default.Services)
	}
}

// TestRunnerNotPackaged: the chart's package has no files for another chart.
func TestRunnerNotPackaged(t *testing.T) {
	for _, f := range loadChart(t).Raw {
		if strings.Contains(f.Name, "gitlab") {
			t.Errorf("%s is in the package", f.Name)
		}
	}
}

// TestRunnerKeys: GitLab Runner knows all keys in our configurations. It ignores unknown keys.
func TestRunnerKeys(t *testing.T) {
	config := runnerConfig(t)
	files, err := filepath.Glob(examples + "gitlab-runner/*.toml")
	if err != nil || len(files) < 2 {
		t.Fatalf("%q, %v", files, err)
	}
	texts := map[string]string{}
	for _, f := range files {
		texts[f] = readFile(t, f)
	}
	var v runnerValues
	if err := yaml.Unmarshal([]byte(readFile(t, runnerFile)), &v); err != nil {
		t.Fatal(err)
	}
	texts[runnerFile] = v.Runners.Config
	for name, text := range texts {
		checkKeys(t, name, parseTOML[map[string]any](t, text), config)
	}
}

// importNothing makes types of other packages invalid.
type importNothing struct{}

func (importNothing) Import(string) (*types.Package, error) { return nil, errors.New("not needed") }

// runnerConfig is GitLab Runner's type of config.toml. Its source is parsed, not imported:
// an import needs some 300 modules, and the Go module proxy does not have all of them.
func runnerConfig(t *testing.T) types.Type {
	t.Helper()
	cmd := exec.CommandContext(context.Background(), "go", "mod", "download", "-json", gitlabRunner)
	cmd.Dir = t.TempDir() // outside a module
	out, err := cmd.Output()
	var module struct{ Dir, Error string }
	if err := errors.Join(err, json.Unmarshal(out, &module)); err != nil || module.Dir == "" {
		t.Fatalf("%v %s", err, module.Error)
	}
	config := goPackage(t, filepath.Join(module.Dir, "common")).Scope().Lookup("Config")
	if config == nil {
		t.Fatal("no type Config")
	}
	return config.Type()
}

// goPackage returns the constants and types of a folder that need no other packages.
func goPackage(t *testing.T, folder string) *types.Package {
	t.Helper()
	p, err := gobuild.ImportDir(folder, 0)
	if err != nil {
		t.Fatal(err)
	}
	fset := token.NewFileSet()
	var files []*ast.File
	for _, name := range p.GoFiles {
		f, err := parser.ParseFile(fset, filepath.Join(p.Dir, name), nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, f)
	}
	check := types.Config{Importer: importNothing{}, IgnoreFuncBodies: true, Error: func(error) {}}
	checked, _ := check.Check(p.Name, fset, files, nil) // the error is about the imports
	return checked
}

// checkKeys checks that GitLab Runner's type has a field for each key of a value.
func checkKeys(t *testing.T, path string, value any, in types.Type) {
	t.Helper()
	if p, ok := in.Underlying().(*types.Pointer); ok {
		in = p.Elem()
	}
	switch v := reflect.ValueOf(value); v.Kind() {
	case reflect.Map:
		for key, value := range v.Seq2() {
			if f := fieldOf(in, key.String()); f != nil {
				checkKeys(t, path+"."+key.String(), value.Interface(), f)
			} else {
				t.Errorf("%s: GitLab Runner has no %s", path, key)
			}
		}
		return
	case reflect.Slice:
		if list, ok := in.Underlying().(*types.Slice); ok {
			for i := range v.Len() {
				checkKeys(t, path, v.Index(i).Interface(), list.Elem())
			}
			return
		}
	default:
		kinds := map[reflect.Kind]types.BasicInfo{reflect.String: types.IsString, reflect.Bool: types.IsBoolean, reflect.Int64: types.IsInteger}
		if b, ok := in.Underlying().(*types.Basic); ok && b.Info()&kinds[v.Kind()] != 0 {
			return
		}
	}
	t.Errorf("%s: %T, and GitLab Runner has %s", path, value, in)
}

// fieldOf returns the type of a table's key, or nil if there is no such key.
func fieldOf(in types.Type, key string) types.Type {
	switch table := in.Underlying().(type) {
	case *types.Map:
		return table.Elem()
	case *types.Pointer:
		return fieldOf(table.Elem(), key)
	case *types.Struct:
		for i := range table.NumFields() {
			name, _, _ := strings.Cut(reflect.StructTag(table.Tag(i)).Get("toml"), ",")
			if name == key {
				return table.Field(i).Type()
			}
			if table.Field(i).Embedded() {
				if f := fieldOf(table.Field(i).Type(), key); f != nil {
					return f
				}
			}
		}
	}
	return nil
}
