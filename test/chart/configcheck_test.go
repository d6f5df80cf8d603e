package chart

import (
	"errors"
	"io"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"helm.sh/helm/v4/pkg/action"
	"helm.sh/helm/v4/pkg/chart/common"
	kubefake "helm.sh/helm/v4/pkg/kube/fake"
	release "helm.sh/helm/v4/pkg/release/v1"
	"helm.sh/helm/v4/pkg/storage"
	"helm.sh/helm/v4/pkg/storage/driver"
	batch "k8s.io/api/batch/v1"
	core "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
)

// configJob returns the Job that checks the configuration, nil without one.
func configJob(t *testing.T, r rendered) *batch.Job {
	t.Helper()
	jobs := all[*batch.Job](r)
	if len(jobs) > 1 {
		t.Fatalf("%d Jobs", len(jobs))
	}
	if len(jobs) == 0 {
		return nil
	}
	return jobs[0]
}

// checkPod is the file system of the Job's container: what the kubelet makes of the Job's
// own objects, and of Secrets that exist before it if there are any.
func checkPod(t *testing.T, r rendered, exist bool) pod {
	t.Helper()
	spec := configJob(t, r).Spec.Template.Spec
	p := pod{root: t.TempDir(), container: spec.Containers[0]}
	for _, e := range p.container.Env {
		p.env = append(p.env, e.Name+"="+e.Value)
	}
	for _, m := range p.container.VolumeMounts {
		v := spec.Volumes[slices.IndexFunc(spec.Volumes, func(v core.Volume) bool { return v.Name == m.Name })]
		if v.ConfigMap != nil {
			v.Projected = &core.ProjectedVolumeSource{Sources: []core.VolumeProjection{{ConfigMap: &core.ConfigMapProjection{LocalObjectReference: v.ConfigMap.LocalObjectReference, Items: v.ConfigMap.Items}}}}
		}
		for _, source := range v.Projected.Sources {
			switch {
			case source.ConfigMap != nil:
				for _, item := range source.ConfigMap.Items {
					p.write(t, filepath.Join(m.MountPath, item.Path), named[*core.ConfigMap](t, r, source.ConfigMap.Name).Data[item.Key])
				}
			case len(source.Secret.Items) > 0:
				for _, item := range source.Secret.Items {
					p.write(t, filepath.Join(m.MountPath, item.Path), string(named[*core.Secret](t, r, source.Secret.Name).Data[item.Key]))
				}
			case exist:
				for _, found := range regexp.MustCompile(regexp.QuoteMeta(m.MountPath)+`/([\w.-]+)`).FindAllStringSubmatch(config(t, r), -1) {
					p.write(t, filepath.Join(m.MountPath, found[1]), secretFile(t, found[1]))
				}
			}
		}
	}
	return p
}

// runCheck is what the Job does, with the real cachalot.
func runCheck(t *testing.T, r rendered, exist bool) (string, error) {
	t.Helper()
	p := checkPod(t, r, exist)
	cmd := p.command(t, slices.Clone(p.container.Args)...)
	if cmd.Env == nil {
		cmd.Env = []string{} // not the test's
	}
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// TestConfigCheck: each release has a Job that accepts its configuration, and that needs
// no object of the release, because it runs before there is any.
func TestConfigCheck(t *testing.T) {
	for name, c := range choices() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := render(t, "mirror", c.values)
			job := configJob(t, r)
			if none := slices.Contains([]string{"no check of the configuration", "password from the environment"}, name); none != (job == nil) {
				t.Fatalf("a Job: %v", job != nil)
			}
			if job == nil {
				return
			}
			configMap := named[*core.ConfigMap](t, r, job.Name)
			checkHook(t, configMap, job)
			checked, read := parse(t, configMap.Data["config"]), parse(t, config(t, r))
			delete(read, "tls")
			if !equality.Semantic.DeepEqual(checked, read) {
				t.Errorf("it checks\n%v\nand the mirror reads\n%v", checked, read)
			}
			pod, mirror := job.Spec.Template.Spec, statefulSet(t, r).Spec.Template.Spec
			checkAlone(t, r, pod)
			if !equality.Semantic.DeepEqual(pod.ImagePullSecrets, mirror.ImagePullSecrets) || !equality.Semantic.DeepEqual(pod.NodeSelector, mirror.NodeSelector) || !equality.Semantic.DeepEqual(pod.Tolerations, mirror.Tolerations) {
				t.Errorf("it may not run where the mirror does: %v, %v, %v", pod.ImagePullSecrets, pod.NodeSelector, pod.Tolerations)
			}
			for _, exist := range []bool{false, true} {
				if out, err := runCheck(t, r, exist); err != nil {
					t.Errorf("Secrets exist: %v: %v\n%s", exist, err, out)
				}
			}
		})
	}
}

// checkHook wants both objects before an install and an upgrade, and at each sync of
// Argo CD, with the ConfigMap first, and none of them left afterwards.
func checkHook(t *testing.T, objects ...object) {
	t.Helper()
	var weights []int
	for _, o := range objects {
		a := o.GetAnnotations()
		if a["helm.sh/hook"] != "pre-install,pre-upgrade" || a["helm.sh/hook-delete-policy"] != "before-hook-creation,hook-succeeded" {
			t.Errorf("%s: %v", o.GetName(), a)
		}
		weight, err := strconv.Atoi(a["helm.sh/hook-weight"])
		if err != nil {
			t.Error(err)
		}
		weights = append(weights, weight)
	}
	if weights[0] >= weights[1] {
		t.Errorf("weights %v", weights)
	}
}

// checkAlone wants a pod to need nothing that is no hook, and that may not exist before
// the release.
func checkAlone(t *testing.T, r rendered, pod core.PodSpec) {
	t.Helper()
	hook := func(o object) {
		if o.GetAnnotations()["helm.sh/hook-weight"] != "-5" || o.GetAnnotations()["helm.sh/hook"] != "pre-install,pre-upgrade" {
			t.Errorf("%s is not there before the Job: %v", o.GetName(), o.GetAnnotations())
		}
	}
	for _, v := range pod.Volumes {
		switch {
		case v.ConfigMap != nil:
			hook(named[*core.ConfigMap](t, r, v.ConfigMap.Name))
		case v.Projected == nil:
			t.Errorf("volume %v", v)
		default:
			for _, s := range v.Projected.Sources {
				if s.ConfigMap != nil {
					hook(named[*core.ConfigMap](t, r, s.ConfigMap.Name))
				} else if s.Secret.Optional == nil || !*s.Secret.Optional {
					hook(named[*core.Secret](t, r, s.Secret.Name))
				}
			}
		}
	}
	c := pod.Containers[0]
	if len(pod.Containers) != 1 || len(pod.InitContainers) != 0 || len(c.EnvFrom) != 0 || slices.ContainsFunc(c.Env, func(e core.EnvVar) bool { return e.ValueFrom != nil }) {
		t.Errorf("containers %v", pod.Containers)
	}
	for _, a := range all[*core.ServiceAccount](r) {
		if a.Name == pod.ServiceAccountName {
			t.Errorf("it has the ServiceAccount %s, which the release makes", a.Name)
		}
	}
}

// TestConfigCheckRefuses: the Job fails at once for what only cachalot sees.
func TestConfigCheckRefuses(t *testing.T) {
	for values, want := range map[string]string{
		`{config: {default_upstream: nowhere.test}}`:                                                                                                            "default_upstream",
		`{config: {storage: {low_mark: 99%}}}`:                                                                                                                  "low_mark",
		`{config: {upstreams: {docker.io: {username: ci, password: "${HUB}"}}}}`:                                                                                "the environment variable HUB is not set",
		`{extraEnv: [{name: LEVEL, value: loud}], config: {log: {level: "${LEVEL}"}}}`:                                                                          "log.level",
		`{secrets: {hub: {existingSecret: hub}}, config: {upstreams: {docker.io: {username: ci, password_file: /run/secrets/hbu/password}}}}`:                   "password_file: cannot be read",
		`{secrets: {hub: {data: {password: a}}}, config: {upstreams: {docker.io: {username: ci, password_file: /run/secrets/hub/pasword}}}}`:                    "password_file: cannot be read",
		`{secrets: {admin: {data: {token: short}}}, config: {admin: {token_file: /run/secrets/admin/token}}}`:                                                   "admin.token_file: 5 characters",
		`{secrets: {hub: {existingSecret: hub}}, config: {upstreams: {docker.io: {username: ci, docker_config: /run/secrets/hub/config.json, keychain: ecr}}}}`: "upstreams.docker.io",
		`{config: {upstreams: {docker.io: {username: ci, password_file: correct horse}}}}`:                                                                      "password_file: cannot be read",
		`{extraEnvFrom: [{secretRef: {name: hub}}], config: {storage: {low_mark: 99%}}}`:                                                                        "low_mark",
		`{extraEnv: [{name: LEVEL, value: loud}], extraEnvFrom: [{secretRef: {name: hub}}], config: {log: {level: "${LEVEL}"}}}`:                                "log.level",
	} {
		r := render(t, "mirror", values)
		out, err := runCheck(t, r, true)
		exit, ok := errors.AsType[*exec.ExitError](err)
		if !ok || !strings.Contains(out, want) {
			t.Errorf("%s: %v, want %q in\n%s", values, err, want, out)
			continue
		}
		rule := configJob(t, r).Spec.PodFailurePolicy.Rules[0]
		if rule.Action != batch.PodFailurePolicyActionFailJob || !slices.Contains(rule.OnExitCodes.Values, int32(exit.ExitCode())) {
			t.Errorf("%s: exit code %d, and the Job tries again after %v", values, exit.ExitCode(), rule.OnExitCodes)
		}
	}
}

// TestConfigCheckWaitsForNothing: no Job waits for a variable that may come with the release.
func TestConfigCheckWaitsForNothing(t *testing.T) {
	for values, want := range map[string]bool{
		`{config: {upstreams: {docker.io: {username: ci, password_file: /vault/secrets/hub}}}}`:                                                                                                                  false,
		`{config: {upstreams: {docker.io: {username: ci, password_file: /run/secrets/hub/password}}}}`:                                                                                                           true,
		`{extraVolumes: [{name: csi, emptyDir: {}}], extraVolumeMounts: [{name: csi, mountPath: /run/secrets/hub}], config: {upstreams: {docker.io: {username: ci, password_file: /run/secrets/hub/password}}}}`: false,
		`{extraEnvFrom: [{secretRef: {name: hub}}]}`:                                                                                true,
		`{extraEnvFrom: [{secretRef: {name: hub}}], config: {hosts: ["${NAME}.example"]}}`:                                          false,
		`{extraEnvFrom: [{secretRef: {name: hub}}], extraEnv: [{name: NAME, value: a}], config: {hosts: ["${NAME}.example"]}}`:      true,
		`{extraEnv: [{name: NAME, valueFrom: {configMapKeyRef: {name: a, key: b}}}], config: {hosts: ["${NAME}.example"]}}`:         false,
		`{extraEnv: [{name: OTHER, valueFrom: {configMapKeyRef: {name: a, key: b}}}], config: {hosts: ["mirror.example"]}}`:         true,
		`{extraEnv: [{name: NAME, valueFrom: {secretKeyRef: {name: a, key: b}}}], config: {tracing: {endpoint: "http://${NAME}"}}}`: false,
	} {
		if got := configJob(t, render(t, "mirror", values)) != nil; got != want {
			t.Errorf("%s: a Job: %v", values, got)
		}
	}
}

// TestConfigCheckFirst: where the Job fails, Helm has changed nothing.
func TestConfigCheckFirst(t *testing.T) {
	const refused = "the Job has failed"
	cfg := &action.Configuration{
		Releases:     storage.Init(driver.NewMemory()),
		KubeClient:   &kubefake.PrintingKubeClient{Out: io.Discard},
		Capabilities: common.DefaultCapabilities.Copy(),
	}
	cfg.Capabilities.KubeVersion = oldest
	install := action.NewInstall(cfg)
	install.ReleaseName, install.Namespace = "mirror", namespace
	if _, err := install.Run(loadChart(t), parse(t, "")); err != nil {
		t.Fatal(err)
	}
	cfg.KubeClient = &kubefake.FailingKubeClient{
		PrintingKubeClient:   kubefake.PrintingKubeClient{Out: io.Discard, LogOutput: io.Discard},
		WatchUntilReadyError: errors.New(refused), UpdateError: errors.New("the objects were changed"),
	}
	upgrade := action.NewUpgrade(cfg)
	upgrade.Namespace = namespace
	if _, err := upgrade.Run("mirror", loadChart(t), parse(t, `{config: {default_upstream: nowhere.test}}`)); err == nil || !strings.Contains(err.Error(), refused) {
		t.Errorf("the upgrade: %v", err)
	}
	deployed, err := cfg.Releases.Deployed("mirror")
	if err != nil {
		t.Fatal(err)
	}
	if got := deployed.(*release.Release).Version; got != 1 {
		t.Errorf("revision %d is deployed", got)
	}
}
