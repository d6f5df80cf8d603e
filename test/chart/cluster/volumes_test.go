package cluster

import (
	"testing"

	core "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const defaultClass = "storageclass.kubernetes.io/is-default-class"

// volumes makes sure that claims get volumes. Those made here are of type local: fsGroup
// applies to them as to disks, unlike to hostPath.
func (c *cluster) volumes(t *testing.T) {
	t.Helper()
	classes, err := c.StorageV1().StorageClasses().List(t.Context(), meta.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, class := range classes.Items {
		if class.Annotations[defaultClass] == "true" {
			c.say(t, "claims get volumes of the default StorageClass, %s", class.Name)
			return
		}
	}
	c.class = "cachalot-test-" + c.suffix
	c.say(t, "there is no default StorageClass: claims get folders of the node")
}

func (c *cluster) folder() string { return "/host/var/tmp/cachalot-test-" + c.suffix }

// volume makes a volume for the claim of a new release.
func (c *cluster) volume(t *testing.T, namespace, release string) {
	t.Helper()
	if c.class == "" {
		return
	}
	name := namespace + "-" + release
	folder := c.folder() + "/" + name
	c.onNode(t, "folder", folder)
	size := core.ResourceList{core.ResourceStorage: resource.MustParse(claimSize)}
	_, err := c.CoreV1().PersistentVolumes().Create(t.Context(), &core.PersistentVolume{
		ObjectMeta: meta.ObjectMeta{Name: name},
		Spec: core.PersistentVolumeSpec{
			Capacity: size, AccessModes: []core.PersistentVolumeAccessMode{core.ReadWriteOnce},
			PersistentVolumeReclaimPolicy: core.PersistentVolumeReclaimRetain,
			StorageClassName:              c.class,
			ClaimRef:                      &core.ObjectReference{Namespace: namespace, Name: claim(release)},
			PersistentVolumeSource:        core.PersistentVolumeSource{Local: &core.LocalVolumeSource{Path: folder[len("/host"):]}},
			NodeAffinity: &core.VolumeNodeAffinity{Required: &core.NodeSelector{NodeSelectorTerms: []core.NodeSelectorTerm{{
				MatchFields: []core.NodeSelectorRequirement{{Key: "metadata.name", Operator: core.NodeSelectorOpIn, Values: []string{c.node}}},
			}}}},
		},
	}, meta.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.CoreV1().PersistentVolumes().Delete(withoutEnd(t), name, meta.DeleteOptions{}); err != nil {
			t.Error(err)
		}
	})
}
