package dind

import (
	"cmp"
	"fmt"
	"regexp"
	"strconv"
)

// version is the version of dockerd. The zero value is unknown, and counts as the newest.
type version struct{ major, minor, patch int }

var versionRegexp = regexp.MustCompile(`\b(\d{1,4})\.(\d{1,4})\.(\d{1,4})\b`)

// parseVersion reads what "dockerd --version" prints.
func parseVersion(s string) version {
	m := versionRegexp.FindStringSubmatch(s)
	if m == nil {
		return version{}
	}
	var n [3]int
	for i := range n {
		n[i], _ = strconv.Atoi(m[i+1]) // at most four digits
	}
	return version{n[0], n[1], n[2]}
}

func (v version) atLeast(major, minor, patch int) bool {
	return v == version{} || cmp.Or(cmp.Compare(v.major, major), cmp.Compare(v.minor, minor), cmp.Compare(v.patch, patch)) >= 0
}

func (v version) String() string {
	if v == (version{}) {
		return "dockerd"
	}
	return fmt.Sprintf("dockerd %d.%d.%d", v.major, v.minor, v.patch)
}

// readsHosts reports whether dockerd reads certs.d/<registry>/hosts.toml.
func (v version) readsHosts() bool { return v.atLeast(28, 0, 0) }

// knowsReferrers reports whether hosts.toml may have the capability of that name, since
// containerd's library 2.2. Earlier versions ignore a hosts.toml that has it.
func (v version) knowsReferrers() bool { return v.atLeast(29, 1, 0) }

// prefersContainerd reports whether the containerd image store is the default.
func (v version) prefersContainerd() bool { return v.atLeast(29, 0, 0) }

// takesPath reports whether --registry-mirror may have a path. Earlier versions do not start
// with one.
func (v version) takesPath() bool { return v.atLeast(24, 0, 8) }

// takesNetworkOpt reports whether dockerd has --default-network-opt.
func (v version) takesNetworkOpt() bool { return v.atLeast(24, 0, 0) }
