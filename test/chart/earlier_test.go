package chart

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"helm.sh/helm/v4/pkg/action"
	"helm.sh/helm/v4/pkg/chart/common"
	"helm.sh/helm/v4/pkg/chart/loader"
	chartv2 "helm.sh/helm/v4/pkg/chart/v2"
	kubefake "helm.sh/helm/v4/pkg/kube/fake"
	release "helm.sh/helm/v4/pkg/release/v1"
	"helm.sh/helm/v4/pkg/storage"
	"helm.sh/helm/v4/pkg/storage/driver"
	apps "k8s.io/api/apps/v1"
	"k8s.io/apimachinery/pkg/api/equality"
)

// withoutTypes is the last commit whose claims have no apiVersion and kind.
const withoutTypes = "7acaa0a873a7aadcf66f2cf3c994c398e283f20a"

func git(t *testing.T, args ...string) []byte {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "git", args...)
	cmd.Dir = "../.."
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("git %q: %v", args, err)
	}
	return out
}

// earlierChart is the chart as a commit has it.
func earlierChart(t *testing.T, commit string) *chartv2.Chart {
	t.Helper()
	folder := t.TempDir()
	files := tar.NewReader(bytes.NewReader(git(t, "archive", "--format=tar", commit, "charts/cachalot")))
	for {
		header, err := files.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if header.Typeflag != tar.TypeReg {
			continue
		}
		content, err := io.ReadAll(files)
		if err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(folder, filepath.FromSlash(header.Name))
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	c, err := loader.Load(filepath.Join(folder, "charts/cachalot"))
	if err != nil {
		t.Fatal(err)
	}
	return c.(*chartv2.Chart)
}

// upgrade installs a release with one chart and upgrades it to another, with the values
// again or with "--reuse-values", which has none of the new chart's defaults.
func upgrade(t *testing.T, from, to *chartv2.Chart, values string, reuse bool) (before, after rendered, err error) {
	t.Helper()
	cfg := &action.Configuration{
		Releases:     storage.Init(driver.NewMemory()),
		KubeClient:   &kubefake.PrintingKubeClient{Out: io.Discard},
		Capabilities: common.DefaultCapabilities.Copy(),
	}
	cfg.Capabilities.KubeVersion = oldest
	install := action.NewInstall(cfg)
	install.ReleaseName, install.Namespace = "mirror", namespace
	old, err := install.Run(from, parse(t, values))
	if err != nil {
		return before, after, err
	}
	upgrade := action.NewUpgrade(cfg)
	upgrade.Namespace, upgrade.ReuseValues = namespace, reuse
	again := map[string]any{}
	if !reuse {
		again = parse(t, values)
	}
	upgraded, err := upgrade.Run("mirror", to, again)
	if err != nil {
		t.Fatal(err)
	}
	return asRendered(t, old.(*release.Release)), asRendered(t, upgraded.(*release.Release)), nil
}

// TestUpgradeFromEarlier: releases of earlier charts, the last one among them, take this
// one with all that people choose. It changes no field that Kubernetes forbids to change,
// and takes no object away.
func TestUpgradeFromEarlier(t *testing.T) {
	if _, err := os.Stat("../../.git"); err != nil {
		t.Skip("there is no history here")
	}
	if strings.TrimSpace(string(git(t, "rev-parse", "--is-shallow-repository"))) == "true" {
		t.Skip("the history is not whole")
	}
	last := strings.TrimSpace(string(git(t, "rev-list", "--skip=1", "-n", "1", "HEAD", "--", "charts/cachalot")))
	for _, commit := range slices.Compact([]string{withoutTypes, last}) {
		t.Run(commit[:7], func(t *testing.T) {
			t.Parallel()
			from, taken := earlierChart(t, commit), 0
			for name, c := range choices() {
				if _, _, err := upgrade(t, from, loadChart(t), c.values, true); err != nil {
					continue // values that it does not know yet
				}
				taken++
				before, after, err := upgrade(t, from, loadChart(t), c.values, false)
				if err != nil {
					t.Fatal(err)
				}
				checkUpgrade(t, name, before, after)
			}
			if taken < 40 {
				t.Errorf("it takes %d of %d sets of values", taken, len(choices()))
			}
		})
	}
}

func checkUpgrade(t *testing.T, name string, before, after rendered) {
	t.Helper()
	old, now := statefulSet(t, before), statefulSet(t, after)
	if old.Name != now.Name || !equality.Semantic.DeepEqual(fixed(old), fixed(now)) {
		t.Errorf("%s: Kubernetes refuses the upgrade:\n%v\n%v", name, fixed(old), fixed(now))
	}
	for _, d := range all[*apps.DaemonSet](before) {
		if !equality.Semantic.DeepEqual(d.Spec.Selector, nodes(t, after).Spec.Selector) {
			t.Errorf("%s: another selector of the nodes", name)
		}
	}
	for _, o := range before.objects {
		kind := o.GetObjectKind().GroupVersionKind()
		if !slices.ContainsFunc(after.objects, func(p object) bool { return p.GetName() == o.GetName() && p.GetObjectKind().GroupVersionKind() == kind }) {
			t.Errorf("%s: no %s %s any more", name, kind.Kind, o.GetName())
		}
	}
}
