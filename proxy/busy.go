package proxy

import (
	"errors"

	"github.com/cachalot-registry/cachalot/bounds"
)

// What clients ask too much of at once. It is no word on what they asked for.
var (
	errBusy  = errors.New("too many requests to this registry are running; ask again later")
	errNames = errors.New("too many new registries in a short time; ask again later")
)

// busy is what there was too much of, as the metric says, where that is what err is.
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
