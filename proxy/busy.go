package proxy

import (
	"errors"

	"github.com/cachalot-registry/cachalot/bounds"
)

// Errors of a limit that clients have reached. They say nothing about the content.
var (
	errBusy  = errors.New("too many requests to this registry are running; ask again later")
	errNames = errors.New("too many new registries in a short time; ask again later")
)

// busy returns which limit err is about, as in the metric; false: err is another error.
func busy(err error) (what string, ok bool) {
	switch {
	case errors.Is(err, errBusy):
		return "checks", true
	case errors.Is(err, errNames):
		return "names", true
	case errors.Is(err, bounds.ErrNoMemory):
		return "memory", true
	}
	return "", false
}
