//go:build e2e

package e2e

import (
	"bytes"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/BurntSushi/toml"
	"github.com/bmatcuk/doublestar/v4"
	"github.com/goccy/go-yaml"
)

const (
	docs        = "../../docs"
	exampleURL  = "http://cachalot.example:5000" // the mirror in all examples
	exampleDind = "registry.example/ci/cachalot-dind:29"
)

// example has the tests of a file in docs/examples.
type example struct {
	// reads compares the file with its system's documentation and with the output of
	// cachalot client.
	reads func(t *testing.T, file string)
	// runs does what the file's system does; nil if another file's run covers it.
	runs func(t *testing.T, l *lab, file string)
}

func examples() map[string]example {
	gitlab := func(w wanted, reads func(*testing.T, string)) example {
		return example{reads, func(t *testing.T, l *lab, file string) {
			t.Helper()
			l.gitlab(t, file, w)
		}}
	}
	return map[string]example{
		"gitlab-ci/plain.gitlab-ci.yml":   gitlab(wanted{hub: "buildkit", quay: "buildkit", private: []string{direct}}, readGitLab),
		"gitlab-ci/stock.gitlab-ci.yml":   gitlab(wanted{hub: mirrorAgent, quay: "buildkit", private: []string{direct}}, readGitLab),
		"gitlab-ci/dind.gitlab-ci.yml":    gitlab(wanted{hub: mirrorAgent, quay: mirrorAgent, private: []string{"buildkit", direct}, jobs: 2}, readGitLab),
		"gitlab-ci/compose.gitlab-ci.yml": gitlab(wanted{hub: mirrorAgent, quay: mirrorAgent}, readGitLab),
		"gitlab-ci/buildx.gitlab-ci.yml":  gitlab(wanted{hub: mirrorAgent, quay: mirrorAgent, private: []string{"buildkit", direct}, jobs: 2}, readGitLab),
		"gitlab-ci/buildah.gitlab-ci.yml": gitlab(wanted{hub: mirrorAgent, quay: mirrorAgent, private: []string{"Buildah"}, security: []string{"seccomp=unconfined"}}, readBuildah),
		"gitlab-ci/kaniko.gitlab-ci.yml":  gitlab(wanted{hub: mirrorAgent, quay: mirrorAgent, private: []string{"Go-http-client", "go-containerregistry", "kaniko"}}, readKaniko),
		"gitlab-runner/config.toml":       {readRunners, runDockerRunners},
		"gitlab-runner/kubernetes.toml":   {readKubernetesRunner, runKubernetesRunner},
		"github-actions/workflow.yml":     {readWorkflow, nil}, // arc-values.yml runs its steps
		"github-actions/arc-values.yml":   {readPod, runPod},
		"woodpecker/pipeline.yml":         {readWoodpecker, runWoodpecker},
		"drone/pipeline.yml":              {readDrone, runDrone},
		"project/Dockerfile":              {}, // built by all pipelines
		"project/.dockerignore":           {},
		"project/hello.sh":                {},
		"project/hello_test.sh":           {}, // part of the build and of the image
		"project/compose.yaml":            {}, // run by compose.gitlab-ci.yml
	}
}

// TestExamples parses the examples as their systems do. Each file has an entry.
func TestExamples(t *testing.T) {
	t.Parallel()
	root := filepath.Join(docs, "examples")
	list := examples()
	var files []string
	check(t, filepath.WalkDir(root, func(file string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			files = append(files, filepath.ToSlash(strings.TrimPrefix(file, root+"/")))
		}
		return err
	}))
	if known := slices.Sorted(maps.Keys(list)); !slices.Equal(files, known) {
		t.Errorf("the examples are %q, and the tests know %q", files, known)
	}
	for name, e := range list {
		if e.reads != nil {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				e.reads(t, filepath.Join(root, name))
			})
		}
	}
}

// decode reads a file, and fails for keys that its type does not have.
func decode[T any](t *testing.T, file string) (v T) {
	t.Helper()
	b, err := os.ReadFile(file)
	check(t, err)
	if path.Ext(file) != ".toml" {
		check(t, yaml.UnmarshalWithOptions(b, &v, yaml.Strict()))
		return v
	}
	meta, err := toml.NewDecoder(bytes.NewReader(b)).Decode(&v)
	check(t, err)
	if unknown := meta.Undecoded(); len(unknown) > 0 {
		t.Fatalf("%s: unknown keys %v", file, unknown)
	}
	return v
}

// prints is the output of cachalot client for the examples' registries.
func prints(t *testing.T, client string, more ...string) string {
	t.Helper()
	return must(t, nil, append([]string{
		installed(t, "cachalot"), "client", client, "--mirror", exampleURL, "--registry", "docker.io", "--registry", "quay.io",
	}, more...)...)
}

func matches(t *testing.T, what, got, want string) {
	t.Helper()
	if strings.TrimSpace(got) != strings.TrimSpace(want) {
		t.Errorf("%s is\n%s\nand cachalot client prints\n%s", what, got, want)
	}
}

// variables are the variables of a job or container.
type variables map[string]string

// gitlabFile has the used keys of https://docs.gitlab.com/ci/yaml/.
type gitlabFile struct {
	Default   gitlabJob
	Variables variables
	Build     *gitlabJob
	Test      *gitlabJob
}

type gitlabJob struct {
	Image        gitlabImage
	Services     []gitlabImage
	Variables    variables
	BeforeScript []string `yaml:"before_script"`
	Script       []string
	AfterScript  []string `yaml:"after_script"`
}

// gitlabImage is an image or a service. It may be a name only.
type gitlabImage struct {
	Name, Alias         string
	Entrypoint, Command []string
	Variables           variables
}

func (i *gitlabImage) UnmarshalYAML(b []byte) error {
	if yaml.Unmarshal(b, &i.Name) == nil {
		return nil
	}
	type plain gitlabImage // a type without this method
	return yaml.UnmarshalWithOptions(b, (*plain)(i), yaml.Strict())
}

func readGitLab(t *testing.T, file string) {
	t.Helper()
	gitlabJobOf(t, file)
}

// gitlabJobOf returns a file's only job, with the defaults.
func gitlabJobOf(t *testing.T, file string) gitlabJob {
	t.Helper()
	f := decode[gitlabFile](t, file)
	if (f.Build == nil) == (f.Test == nil) {
		t.Fatalf("%s: not one job", file)
	}
	job := f.Build
	if job == nil {
		job = f.Test
	}
	if job.Image.Name == "" {
		job.Image = f.Default.Image
	}
	if job.Services == nil {
		job.Services = f.Default.Services
	}
	all := maps.Clone(f.Variables)
	if all == nil {
		all = variables{}
	}
	maps.Copy(all, job.Variables)
	job.Variables = all
	if url, ok := all["CACHALOT_MIRROR"]; ok && url != exampleURL {
		t.Errorf("%s: the mirror is %s", file, url)
	}
	return *job
}

func readBuildah(t *testing.T, file string) {
	t.Helper()
	_, config, ok := strings.Cut(gitlabJobOf(t, file).BeforeScript[0], "<<'END'\n")
	if !ok {
		t.Fatal("no file in the script")
	}
	config, _, _ = strings.Cut(config, "END")
	matches(t, "registries.conf", config, prints(t, "podman"))
}

func readKaniko(t *testing.T, file string) {
	t.Helper()
	job := gitlabJobOf(t, file)
	environment := regexp.MustCompile(`export KANIKO_REGISTRY_MAP='(.*)'`).FindStringSubmatch(prints(t, "kaniko"))
	matches(t, "KANIKO_REGISTRY_MAP", job.Variables["KANIKO_REGISTRY_MAP"], environment[1])
	flag := regexp.MustCompile(`--insecure-registry='(.*)'`).FindStringSubmatch(prints(t, "kaniko"))
	if want := "--insecure-registry=" + flag[1]; !slices.Contains(strings.Fields(job.Script[0]), want) {
		t.Errorf("no %s in %q", want, job.Script[0])
	}
}

// workflow has the used keys of GitHub's workflow syntax. actionlint checks all keys and values.
type workflow struct {
	Name        string
	On          struct{ Push struct{ Branches []string } }
	Permissions variables
	Jobs        map[string]struct {
		RunsOn []string `yaml:"runs-on"`
		Steps  []struct {
			Uses, Run string
			With      variables
		}
	}
}

// step returns the inputs of a job's action.
func (w workflow) step(job, action string) variables {
	for _, s := range w.Jobs[job].Steps {
		if strings.HasPrefix(s.Uses, action+"@") {
			return s.With
		}
	}
	return nil
}

func readWorkflow(t *testing.T, file string) {
	t.Helper()
	w := decode[workflow](t, file)
	must(t, nil, installed(t, "actionlint"), "-no-color", "-shellcheck=", "-pyflakes=", file)
	matches(t, "buildkitd-config-inline", w.step("builder", "docker/setup-buildx-action")["buildkitd-config-inline"], prints(t, "buildkit"))
}

// woodpeckerPipeline has the used keys of Woodpecker's workflow syntax.
type woodpeckerPipeline struct {
	When            []struct{ Event string }
	Steps, Services []woodpeckerStep
}

type woodpeckerStep struct {
	Name, Image string
	Privileged  bool
	Environment variables
	Volumes     []string
	Commands    []string
	Ports       []int
	// The plugin's settings: https://woodpecker-ci.org/plugins/docker-buildx.
	Settings struct {
		Registry, Repo, Tags, Username string
		Password                       struct {
			FromSecret string `yaml:"from_secret"`
		}
		BuildkitConfig string `yaml:"buildkit_config"`
	}
}

func readWoodpecker(t *testing.T, file string) {
	t.Helper()
	p := decode[woodpeckerPipeline](t, file)
	matches(t, "buildkit_config", p.Steps[1].Settings.BuildkitConfig, prints(t, "buildkit"))
}

// dronePipeline has the used keys of Drone's Docker pipelines.
type dronePipeline struct {
	Kind, Type, Name string
	Steps, Services  []droneStep
	Volumes          []struct {
		Name string
		Temp struct{}
	}
}

func readDrone(t *testing.T, file string) {
	t.Helper()
	decode[dronePipeline](t, file)
}

type droneStep struct {
	Name, Image string
	Privileged  bool
	Environment variables
	Volumes     []struct{ Name, Path string }
	Commands    []string
	// The plugin's settings: https://plugins.drone.io/plugins/docker.
	Settings struct {
		Registry, Repo, Tags, Username, Mirror string
		Password                               struct {
			FromSecret string `yaml:"from_secret"`
		}
	}
}

// runnerConfig has the used keys of GitLab Runner's config.toml.
type runnerConfig struct {
	Concurrent int
	Runners    []gitlabRunner
}

type gitlabRunner struct {
	Name, URL, Token, Executor string
	Environment                []string
	Docker                     struct {
		Image                     string
		Privileged                bool
		ServicesPrivileged        bool     `toml:"services_privileged"`
		AllowedPrivilegedServices []string `toml:"allowed_privileged_services"`
		AllowedServices           []string `toml:"allowed_services"`
		SecurityOpt               []string `toml:"security_opt"`
		Volumes                   []string
		PullPolicy                []string `toml:"pull_policy"`
		Services                  []runnerService
	}
	Kubernetes struct {
		Namespace, Image                string
		AllowedServices                 []string          `toml:"allowed_services"`
		PullPolicy                      []string          `toml:"pull_policy"`
		ServiceCPURequest               string            `toml:"service_cpu_request"`
		ServiceMemoryRequest            string            `toml:"service_memory_request"`
		NodeSelector                    map[string]string `toml:"node_selector"`
		ServiceContainerSecurityContext struct {
			Privileged bool
		} `toml:"service_container_security_context"`
		Services []runnerService
		Volumes  struct {
			EmptyDir []struct {
				Name, Medium string
				MountPath    string `toml:"mount_path"`
			} `toml:"empty_dir"`
		}
	}
}

type runnerService struct {
	Name, Alias string
	Command     []string
	Environment []string
}

// allowed matches as GitLab Runner does: the pattern against the whole name.
func allowed(t *testing.T, patterns []string, name string) bool {
	t.Helper()
	return slices.ContainsFunc(patterns, func(pattern string) bool {
		ok, err := doublestar.Match(pattern, name)
		check(t, err)
		return ok
	})
}

// readRunners also compares the runners with the page, which shows each in parts.
func readRunners(t *testing.T, file string) {
	t.Helper()
	c := decode[runnerConfig](t, file)
	for _, r := range c.Runners {
		s := r.Docker.Services[0]
		if r.Executor != "docker" || !allowed(t, r.Docker.AllowedPrivilegedServices, s.Name) ||
			r.Docker.AllowedServices != nil && (!allowed(t, r.Docker.AllowedServices, s.Name) || !allowed(t, r.Docker.AllowedServices, "docker:29-dind")) {
			t.Errorf("%s: its own service %s is not allowed", r.Name, s.Name)
		}
	}
	page, err := os.ReadFile(filepath.Join(docs, "gitlab-ci.md"))
	check(t, err)
	for language, want := range map[string]func(string) bool{
		"yaml": func(part string) bool {
			var v struct {
				Services  []gitlabImage
				Variables variables
			}
			return yaml.UnmarshalWithOptions([]byte(part), &v, yaml.Strict()) == nil && len(v.Services) == 1 &&
				slices.Equal(v.Services[0].Command, c.Runners[1].Docker.Services[0].Command)
		},
		"toml": func(part string) bool {
			for line := range strings.Lines(part) {
				b, err := os.ReadFile(file)
				check(t, err)
				if !strings.Contains(string(b), line) {
					return false
				}
			}
			return true
		},
	} {
		blocks := regexp.MustCompile("(?s)```"+language+"\n(.*?)```").FindAllStringSubmatch(string(page), -1)
		if !slices.ContainsFunc(blocks, func(b []string) bool { return want(b[1]) }) {
			t.Errorf("no %s in the page says what the file does", language)
		}
	}
}

func readKubernetesRunner(t *testing.T, file string) {
	t.Helper()
	r := decode[runnerConfig](t, file).Runners[0]
	if k := r.Kubernetes; r.Executor != "kubernetes" || !k.ServiceContainerSecurityContext.Privileged ||
		!allowed(t, k.AllowedServices, k.Services[0].Name) || !slices.Contains(r.Environment, "CACHALOT_MIRROR="+exampleURL) {
		t.Errorf("%+v", r)
	}
}

// scaleSet has the used values of the chart gha-runner-scale-set, and the keys of
// Kubernetes' PodSpec.
type scaleSet struct {
	GithubConfigURL    string `yaml:"githubConfigUrl"`
	GithubConfigSecret string `yaml:"githubConfigSecret"`
	Template           struct{ Spec podSpec }
}

type podSpec struct {
	InitContainers []podContainer `yaml:"initContainers"`
	Containers     []podContainer
	Volumes        []struct {
		Name     string
		EmptyDir struct{} `yaml:"emptyDir"`
	}
}

type podContainer struct {
	Name, Image   string
	Command, Args []string
	Env           []struct{ Name, Value string }
	VolumeMounts  []struct {
		Name      string
		MountPath string `yaml:"mountPath"`
	} `yaml:"volumeMounts"`
	SecurityContext struct{ Privileged bool } `yaml:"securityContext"`
	RestartPolicy   string                    `yaml:"restartPolicy"`
	StartupProbe    struct {
		Exec             struct{ Command []string }
		FailureThreshold int `yaml:"failureThreshold"`
		PeriodSeconds    int `yaml:"periodSeconds"`
	} `yaml:"startupProbe"`
}

func readPod(t *testing.T, file string) {
	t.Helper()
	podOf(t, file)
}

func podOf(t *testing.T, file string) podSpec {
	t.Helper()
	s := decode[scaleSet](t, file).Template.Spec
	volumes := map[string]bool{}
	for _, v := range s.Volumes {
		volumes[v.Name] = true
	}
	for _, c := range slices.Concat(s.InitContainers, s.Containers) {
		for _, m := range c.VolumeMounts {
			if !volumes[m.Name] {
				t.Errorf("%s: no volume %s", c.Name, m.Name)
			}
		}
		if c.Name == "dind" && c.Image != exampleDind {
			t.Errorf("the image is %s", c.Image)
		}
	}
	return s
}

// environment replaces $(NAME) by an earlier variable, as Kubernetes does.
func (c podContainer) environment() (variables, func(string) string) {
	all := variables{}
	for _, v := range c.Env {
		all[v.Name] = v.Value
	}
	reference := regexp.MustCompile(`\$\((\w+)\)`)
	return all, func(s string) string {
		return reference.ReplaceAllStringFunc(s, func(name string) string {
			if v, ok := all[name[2:len(name)-1]]; ok {
				return v
			}
			return name
		})
	}
}

func (v runnerService) image() gitlabImage {
	return gitlabImage{Name: v.Name, Alias: v.Alias, Command: v.Command, Variables: pairs(v.Environment)}
}

// pairs parses variables of the form NAME=VALUE.
func pairs(list []string) variables {
	v := variables{}
	for _, pair := range list {
		name, value, _ := strings.Cut(pair, "=")
		v[name] = value
	}
	return v
}

// expanded replaces references to other variables, as GitLab does.
func (v variables) expanded() variables {
	all := variables{}
	for name, value := range v {
		all[name] = os.Expand(value, func(other string) string { return v[other] })
	}
	return all
}
