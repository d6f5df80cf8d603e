package dind

import (
	"fmt"
	"path/filepath"
	"slices"
)

const driverVariable = "DOCKER_DRIVER"

// storeFeature turns the containerd image store on or off.
const storeFeature = "containerd-snapshotter"

// classicDrivers returns the storage drivers of the classic image store. If dockerd finds its
// folder of one of them, except vfs, it continues to use that driver.
func classicDrivers() []string { return []string{"overlay2", "fuse-overlayfs", "btrfs", "zfs", "vfs"} }

// classic returns why dockerd would use the classic image store even without DOCKER_DRIVER; "":
// it would not. With that store, docker pull does not read hosts.toml.
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

// dropsDriver reports whether DOCKER_DRIVER is removed: if it is overlay2, and the only reason
// for the classic store. Many jobs set it, because GitLab's documentation recommended it for
// years.
func (p *planner) dropsDriver(reason string) bool {
	return p.env.get(driverVariable) == "overlay2" && reason == "" && !p.set.keepDriver && p.in.Version.readsHosts()
}
