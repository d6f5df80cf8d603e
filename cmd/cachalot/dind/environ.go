package dind

import (
	"slices"
	"strings"
)

// environ is an environment, as os.Environ has it.
type environ []string

// get returns a variable's value, "" if it is not set.
func (e environ) get(name string) string {
	for _, v := range e {
		if value, ok := strings.CutPrefix(v, name+"="); ok {
			return value
		}
	}
	return ""
}

// either returns the first value of the variables that is not empty.
func (e environ) either(names ...string) string {
	for _, name := range names {
		if value := e.get(name); value != "" {
			return value
		}
	}
	return ""
}

// with returns the environment with the variable set.
func (e environ) with(name, value string) environ { return append(e.without(name), name+"="+value) }

// without returns the environment without the variable.
func (e environ) without(name string) environ {
	return slices.DeleteFunc(slices.Clone(e), func(v string) bool { return strings.HasPrefix(v, name+"=") })
}
