package dind

import (
	"fmt"
	"path/filepath"
	"slices"
)

const driverVariable = "DOCKER_DRIVER"

// storeFeature turns the containerd image store on or off.
const storeFeature = "containerd-snapshotter"

// classicDrivers are the storage drivers of the classic image store. dockerd
// finds its folder of one of them, but for vfs, and goes on with it.
func classicDrivers() []string { return []string{"overlay2", "fuse-overlayfs", "btrfs", "zfs", "vfs"} }

// classic says why dockerd would keep images in the classic store, by which
// docker pull looks at no hosts.toml, even without DOCKER_DRIVER. "": it would not.
func (p *planner) classic() string {
	on, said := p.json.Features[storeFeature]
	where := "in " + p.json.path
	if v, ok := p.flags.feature(storeFeature); ok {
		on, said, where = v, true, "among the arguments"
	}
	switch {
	case p.flags.usernsRemap != "" || p.json.UsernsRemap != "":
		return "userns-remap needs the classic image store"
	case said && on:
		return ""
	case said:
		return fmt.Sprintf("the feature %s is off %s", storeFeature, where)
	case !p.in.Version.prefersContainerd():
		return fmt.Sprintf("%s has the containerd image store only with the feature %s", p.in.Version, storeFeature)
	}
	root := p.dataRoot()
	for _, name := range classicDrivers() {
		if dir := filepath.Join(root, name); name != "vfs" && len(p.in.Root.names(dir)) > 0 {
			return dir + " has images of the classic store"
		}
	}
	if p.flags.storageDriver != "" {
		return p.classicBy(p.flags.storageDriver, "--storage-driver="+p.flags.storageDriver+" is given")
	}
	return p.classicBy(p.json.StorageDriver, "storage-driver is "+p.json.StorageDriver+" in "+p.json.path)
}

// classicBy returns the reason if the driver is one of the classic store.
func (p *planner) classicBy(driver, reason string) string {
	if !slices.Contains(classicDrivers(), driver) {
		return ""
	}
	return reason
}

// dropsDriver says whether DOCKER_DRIVER goes: overlay2, which many set because
// GitLab's documentation long told them to, and which decides alone.
func (p *planner) dropsDriver(reason string) bool {
	return p.env.get(driverVariable) == "overlay2" && reason == "" && !p.set.keepDriver && p.in.Version.readsHosts()
}
