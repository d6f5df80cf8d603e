package chart

import (
	"strings"
	"testing"

	core "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/resource"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	sigsyaml "sigs.k8s.io/yaml"
)

// size reads one of cachalot's, such as 50GiB or 10GB.
func size(t *testing.T, text string) int64 {
	t.Helper()
	q, err := resource.ParseQuantity(strings.TrimSuffix(text, "B"))
	if err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	return q.Value()
}

// checkStorage wants of the cache's volume that the kubelet has no reason to evict the
// pod, and that no two pods share it.
func checkStorage(t *testing.T, r rendered) {
	t.Helper()
	set := statefulSet(t, r)
	for _, v := range set.Spec.Template.Spec.Volumes {
		if v.Name == "cache" && (v.EmptyDir != nil || v.HostPath != nil) && settings(t, r)["storage.min_free"] == nil {
			t.Error("the cache is on the node's disk, and the chart sets no storage.min_free")
		}
		switch {
		case v.Name != "cache":
		case v.EmptyDir != nil:
			checkEmptyDir(t, r, v.EmptyDir)
		case v.HostPath != nil:
			checkApart(t, set.Spec.Template)
		}
	}
}

func checkEmptyDir(t *testing.T, r rendered, v *core.EmptyDirVolumeSource) {
	t.Helper()
	index := constants(t, "storage/index")
	keys := settings(t, r)
	most := 2*size(t, "256MiB") + index("reserveSize") + index("Floor") + size(t, keys["storage.max_size"].(string))
	if text, ok := keys["storage.max_index"].(string); ok {
		most += 2 * (size(t, text) - size(t, "256MiB"))
	}
	if limit := v.SizeLimit.Value(); most > limit {
		t.Errorf("blobs and index take %d MiB, and the emptyDir's limit is %d MiB", most/mib, limit/mib)
	}
	resources := statefulSet(t, r).Spec.Template.Spec.Containers[0].Resources
	if resources.Requests.StorageEphemeral().IsZero() {
		t.Error("the scheduler does not know of the emptyDir")
	}
	if limit := resources.Limits.StorageEphemeral(); !limit.IsZero() && limit.Cmp(*v.SizeLimit) < 0 {
		t.Errorf("the container's limit is %s, and the emptyDir's %s", limit, v.SizeLimit)
	}
}

// checkApart wants of a pod that no other one of its kind runs on its node.
func checkApart(t *testing.T, pod core.PodTemplateSpec) {
	t.Helper()
	if pod.Spec.Affinity == nil || pod.Spec.Affinity.PodAntiAffinity == nil {
		t.Error("two pods may share the folder")
		return
	}
	for _, term := range pod.Spec.Affinity.PodAntiAffinity.RequiredDuringSchedulingIgnoredDuringExecution {
		selector, err := meta.LabelSelectorAsSelector(term.LabelSelector)
		if err != nil {
			t.Fatal(err)
		}
		if term.TopologyKey == core.LabelHostname && selector.Matches(labels.Set(pod.Labels)) {
			return
		}
	}
	t.Errorf("two pods may share the folder: %v", pod.Spec.Affinity)
}

// TestEmptyDir: its limit, its request and what blobs may take agree.
func TestEmptyDir(t *testing.T) {
	for values, want := range map[string][3]string{
		`{persistence: {type: emptyDir}}`:                                                              {"60Gi", "60Gi", "55296MiB"},
		`{persistence: {type: emptyDir, size: 20Gi}}`:                                                  {"20Gi", "20Gi", "18432MiB"},
		`{persistence: {type: emptyDir, size: 4Gi}}`:                                                   {"4Gi", "4Gi", "3328MiB"},
		`{persistence: {type: emptyDir, size: 1Gi}}`:                                                   {"1Gi", "1Gi", "256MiB"},
		`{persistence: {type: emptyDir, size: 20Gi}, config: {storage: {max_index: 1GiB}}}`:            {"20Gi", "20Gi", "18176MiB"},
		`{persistence: {type: emptyDir, size: 20Gi}, config: {storage: {max_size: 500MB}}}`:            {"20Gi", "20Gi", "500MB"},
		`{persistence: {type: emptyDir, size: 20Gi}, resources: {requests: {ephemeral-storage: 1Gi}}}`: {"20Gi", "1Gi", "18432MiB"},
		`{persistence: {type: emptyDir, size: 20Gi}, resources: null}`:                                 {"20Gi", "20Gi", "18432MiB"},
	} {
		r := render(t, "mirror", values)
		checkStorage(t, r)
		spec := statefulSet(t, r).Spec.Template.Spec
		var limit string
		for _, v := range spec.Volumes {
			if v.EmptyDir != nil {
				limit = v.EmptyDir.SizeLimit.String()
			}
		}
		got := [3]string{limit, spec.Containers[0].Resources.Requests.StorageEphemeral().String(), settings(t, r)["storage.max_size"].(string)}
		if got != want {
			t.Errorf("%s: limit, request and max_size are %q, want %q", values, got, want)
		}
		if !strings.Contains(values, "resources") && spec.Containers[0].Resources.Requests.Memory().String() != "256Mi" {
			t.Errorf("%s: the request of memory is gone", values)
		}
	}
	if q := statefulSet(t, render(t, "mirror", "")).Spec.Template.Spec.Containers[0].Resources.Requests.StorageEphemeral(); !q.IsZero() {
		t.Errorf("a claim requests %s of the node", q)
	}
}

// TestMinFree: on a node's disk the mirror leaves free what the kubelet evicts pods
// for, unless values say otherwise. A claim's volume is its own.
func TestMinFree(t *testing.T) {
	for values, want := range map[string]any{
		`{}`: nil,
		`{persistence: {type: existingClaim, existingClaim: images}}`:                                           nil,
		`{persistence: {type: emptyDir}}`:                                                                       "20%",
		`{persistence: {type: hostPath, hostPath: /srv}}`:                                                       "20%",
		`{persistence: {type: hostPath, hostPath: /srv}, config: {storage: {max_size: 70GiB}}}`:                 "20%",
		`{persistence: {type: hostPath, hostPath: /srv}, config: {storage: {min_free: 3%}}}`:                    "3%",
		`{persistence: {type: emptyDir}, config: {storage: {min_free: 30GiB}}}`:                                 "30GiB",
		`{persistence: {type: existingClaim, existingClaim: images}, config: {storage: {min_free: "${ROOM}"}}}`: "${ROOM}",
	} {
		if got := settings(t, render(t, "mirror", values))["storage.min_free"]; got != want {
			t.Errorf("%s: %v, want %v", values, got, want)
		}
	}
}

// TestHostPathAffinity: what values say of affinity stays beside the chart's own.
func TestHostPathAffinity(t *testing.T) {
	for _, values := range []string{
		`{persistence: {type: hostPath, hostPath: /srv}}`,
		`{persistence: {type: hostPath, hostPath: /srv}, affinity: {podAntiAffinity: null, podAffinity: {}}}`,
		choices()["several host paths"].values,
	} {
		pod := statefulSet(t, render(t, "mirror", values)).Spec.Template
		checkApart(t, pod)
		theirs := parse(t, values)
		theirs["persistence"] = map[string]any{"type": "existingClaim", "existingClaim": "images"}
		theirs["replicas"] = 1
		text, err := sigsyaml.Marshal(theirs)
		if err != nil {
			t.Fatal(err)
		}
		want := statefulSet(t, render(t, "mirror", string(text))).Spec.Template.Spec.Affinity
		terms := pod.Spec.Affinity.PodAntiAffinity.RequiredDuringSchedulingIgnoredDuringExecution
		pod.Spec.Affinity.PodAntiAffinity.RequiredDuringSchedulingIgnoredDuringExecution = terms[:len(terms)-1]
		if want == nil {
			want = &core.Affinity{}
		}
		if want.PodAntiAffinity == nil {
			want.PodAntiAffinity = &core.PodAntiAffinity{}
		}
		if !equality.Semantic.DeepEqual(pod.Spec.Affinity, want) {
			t.Errorf("%s:\n%v\n%v", values, pod.Spec.Affinity, want)
		}
	}
}

// TestStorageRefused: a volume that is too small, or that the kubelet would evict the
// pod for, says so and what to do.
func TestStorageRefused(t *testing.T) {
	const emptyDir = `persistence: {type: emptyDir, size: 20Gi}`
	for values, want := range map[string]string{
		`{persistence: {size: 1023Mi}}`:                "persistence.size is 1023Mi, and the index alone may take more than half a GiB: set it to 1Gi or more",
		`{persistence: {size: 1G}}`:                    "set it to 1Gi or more",
		`{persistence: {size: "60"}}`:                  "set it to 1Gi or more",
		`{persistence: {type: emptyDir, size: 500Mi}}`: "set it to 1Gi or more",
		`{persistence: {type: emptyDir, size: 2Gi}, config: {storage: {max_index: 1GiB}}}`:      "persistence.size is 2Gi, and the index may take 2304 MiB of it: set a larger size",
		`{` + emptyDir + `, config: {storage: {max_size: 19GiB}}}`:                              "config.storage.max_size is 19GiB, and the kubelet evicts the pod when its emptyDir is above persistence.size, 20Gi: leave max_size out, set it to 18432MiB or less",
		`{` + emptyDir + `, config: {storage: {max_size: 50000MB}}}`:                            "config.storage.max_size is 50000MB",
		`{` + emptyDir + `, config: {storage: {max_size: 0, min_free: 50%}}}`:                   "config.storage.max_size is 0",
		`{` + emptyDir + `, config: {storage: {max_size: 10%}}}`:                                "config.storage.max_size is 10%",
		`{` + emptyDir + `, resources: {limits: {ephemeral-storage: 19Gi, memory: 1Gi}}}`:       "resources.limits.ephemeral-storage is 19Gi, and the emptyDir counts with up to persistence.size, 20Gi",
		`{` + emptyDir + `, resources: {limits: {ephemeral-storage: 1000000000, memory: 1Gi}}}`: "set it to more than that, or leave it out",
	} {
		_, err := tryRender(t, loadChart(t), "mirror", values)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", values, err, want)
		}
	}
	// What is not of the volume, or not known before the start, is not refused.
	for _, values := range []string{
		`{persistence: {type: existingClaim, existingClaim: images, size: 1Mi}}`,
		`{persistence: {type: hostPath, hostPath: /srv, size: 1Mi}}`,
		`{` + emptyDir + `, config: {storage: {max_size: 18432MiB}}}`,
		`{` + emptyDir + `, config: {storage: {max_size: "${SIZE}"}}}`,
		`{` + emptyDir + `, resources: {limits: {ephemeral-storage: 20Gi, memory: 1Gi}}}`,
	} {
		if _, err := tryRender(t, loadChart(t), "mirror", values); err != nil {
			t.Errorf("%s: %v", values, err)
		}
	}
}
