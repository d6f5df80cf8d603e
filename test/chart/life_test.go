package chart

import (
	"io"
	"testing"

	"helm.sh/helm/v4/pkg/action"
	"helm.sh/helm/v4/pkg/chart/common"
	kubefake "helm.sh/helm/v4/pkg/kube/fake"
	release "helm.sh/helm/v4/pkg/release/v1"
	"helm.sh/helm/v4/pkg/storage"
	"helm.sh/helm/v4/pkg/storage/driver"
	apps "k8s.io/api/apps/v1"
	core "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
)

// fixed is the part of a StatefulSet that Kubernetes does not allow to change: an upgrade
// that changes it fails.
func fixed(s *apps.StatefulSet) apps.StatefulSetSpec {
	spec := *s.Spec.DeepCopy()
	spec.Replicas, spec.MinReadySeconds, spec.Ordinals, spec.RevisionHistoryLimit = nil, 0, nil, nil
	spec.Template, spec.UpdateStrategy, spec.PersistentVolumeClaimRetentionPolicy = core.PodTemplateSpec{}, apps.StatefulSetUpdateStrategy{}, nil
	// Kubernetes drops them when it reads a StatefulSet, before it compares, and adds them to
	// what it shows (pkg/apis/apps/v1/conversion.go).
	for i := range spec.VolumeClaimTemplates {
		spec.VolumeClaimTemplates[i].TypeMeta = meta.TypeMeta{}
	}
	return spec
}

// TestUpgradeKeepsTheCache: a new version of the chart, and any choice that is not about
// the claim, keep the claim and its name.
func TestUpgradeKeepsTheCache(t *testing.T) {
	before := statefulSet(t, render(t, "mirror", ""))
	if n := len(before.Spec.VolumeClaimTemplates); n != 1 {
		t.Fatalf("%d claims", n)
	}
	for name, c := range choices() {
		values := parse(t, c.values)
		if values["persistence"] != nil || values["nameOverride"] != nil || values["fullnameOverride"] != nil || values["namespaceOverride"] != nil {
			continue // another claim, or one of another name
		}
		later := loadChart(t)
		later.Metadata.Version, later.Metadata.AppVersion = "7.8.9", "10.11.12"
		after := statefulSet(t, renderChart(t, later, "mirror", c.values))
		if before.Name != after.Name || !equality.Semantic.DeepEqual(fixed(before), fixed(after)) {
			t.Errorf("%s: an upgrade to it fails:\n%v\n%v", name, fixed(before), fixed(after))
		}
	}
}

// TestChartAlone: a new chart version alone replaces no pod; a new version of cachalot does.
func TestChartAlone(t *testing.T) {
	before := statefulSet(t, render(t, "mirror", "")).Spec.Template
	c := loadChart(t)
	c.Metadata.Version = "7.8.9"
	if after := statefulSet(t, renderChart(t, c, "mirror", "")).Spec.Template; !equality.Semantic.DeepEqual(before, after) {
		t.Errorf("the pods are replaced:\n%v\n%v", before, after)
	}
	c.Metadata.AppVersion = "10.11.12"
	if after := statefulSet(t, renderChart(t, c, "mirror", "")).Spec.Template; after.Spec.Containers[0].Image == before.Spec.Containers[0].Image {
		t.Errorf("the image stays %s", after.Spec.Containers[0].Image)
	}
}

// TestRetain: uninstall keeps the claims unless values say otherwise. Fewer replicas always
// keep them.
func TestRetain(t *testing.T) {
	for values, want := range map[string]apps.PersistentVolumeClaimRetentionPolicyType{
		`{}`:                             apps.RetainPersistentVolumeClaimRetentionPolicyType,
		`{persistence: {retain: false}}`: apps.DeletePersistentVolumeClaimRetentionPolicyType,
	} {
		policy := statefulSet(t, render(t, "mirror", values)).Spec.PersistentVolumeClaimRetentionPolicy
		if policy == nil || policy.WhenDeleted != want || policy.WhenScaled != apps.RetainPersistentVolumeClaimRetentionPolicyType {
			t.Errorf("%s: %+v", values, policy)
		}
	}
}

// TestRollback upgrades and rolls back with Helm's own release records.
func TestRollback(t *testing.T) {
	c := loadChart(t)
	cfg := &action.Configuration{
		Releases:     storage.Init(driver.NewMemory()),
		KubeClient:   &kubefake.PrintingKubeClient{Out: io.Discard},
		Capabilities: common.DefaultCapabilities.Copy(),
	}
	cfg.Capabilities.KubeVersion = oldest
	install := action.NewInstall(cfg)
	install.ReleaseName, install.Namespace = "mirror", namespace
	r, err := install.Run(c, parse(t, `{config: {tags: {fresh_for: 5m}}}`))
	if err != nil {
		t.Fatal(err)
	}
	first := r.(*release.Release).Manifest
	upgrade := action.NewUpgrade(cfg)
	upgrade.Namespace = namespace
	r, err = upgrade.Run("mirror", c, parse(t, `{replicas: 2, config: {storage: {max_fills: 9}}}`))
	if err != nil {
		t.Fatal(err)
	}
	if r.(*release.Release).Manifest == first {
		t.Fatal("the upgrade changed nothing")
	}
	rollback := action.NewRollback(cfg)
	rollback.Version = 1
	if err := rollback.Run("mirror"); err != nil {
		t.Fatal(err)
	}
	last, err := cfg.Releases.Last("mirror")
	if err != nil {
		t.Fatal(err)
	}
	if got := last.(*release.Release); got.Version != 3 || got.Manifest != first {
		t.Errorf("revision %d is not what the first was:\n%s", got.Version, got.Manifest)
	}
}

// TestRelease_TwoInOneNamespace: two releases in a namespace share no name and no pod.
func TestRelease_TwoInOneNamespace(t *testing.T) {
	for name, c := range choices() {
		if name == "names" || name == "pod monitor" { // fullnameOverride may give both the same name
			continue
		}
		one, two := render(t, "one", c.values), render(t, "two", c.values)
		for _, a := range one.objects {
			for _, b := range two.objects {
				if a.GetName() == b.GetName() && a.GetObjectKind().GroupVersionKind() == b.GetObjectKind().GroupVersionKind() {
					t.Errorf("%s: both have %s %s", name, a.GetObjectKind().GroupVersionKind().Kind, a.GetName())
				}
			}
		}
		pods := labels.Set(statefulSet(t, two).Spec.Template.Labels)
		selector, err := meta.LabelSelectorAsSelector(statefulSet(t, one).Spec.Selector)
		if err != nil {
			t.Fatal(err)
		}
		if selector.Matches(pods) {
			t.Errorf("%s: the StatefulSet of one takes the pods of the other", name)
		}
		for _, s := range all[*core.Service](one) {
			if labels.SelectorFromSet(s.Spec.Selector).Matches(pods) {
				t.Errorf("%s: the Service %s leads to the other's pods", name, s.Name)
			}
		}
	}
}
