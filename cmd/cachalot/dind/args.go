package dind

import (
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/pflag"
)

const entrypoint = "dockerd-entrypoint.sh"

// flagsAt returns the index of dockerd's first flag in the base's arguments; false: the
// arguments start another program.
func flagsAt(args []string) (int, bool) {
	for i, arg := range args {
		switch filepath.Base(arg) {
		case "dockerd":
			return i + 1, true
		case entrypoint: // as a command: its own arguments follow
		default:
			return i, strings.HasPrefix(arg, "-")
		}
	}
	return len(args), true
}

// flags are the flags of dockerd that this package needs, with the values that dockerd would
// read.
type flags struct {
	end int // where flags can be added: at the end, or before "--"

	configFile, dataRoot, storageDriver, usernsRemap string
	httpProxy, httpsProxy, noProxy                   string
	registryMirrors, insecure, networkOpts, features []string

	given map[string]bool // the flags that are present, by name
}

// parseFlags parses flags as dockerd does, with the same package. It ignores flags that it does
// not know.
func parseFlags(args []string) (flags, error) {
	f := flags{given: make(map[string]bool)}
	fs := pflag.NewFlagSet("dockerd", pflag.ContinueOnError)
	fs.ParseErrorsAllowlist.UnknownFlags = true
	fs.Usage = func() {}
	fs.SetOutput(io.Discard)

	fs.StringVar(&f.configFile, "config-file", "", "")
	fs.StringVar(&f.dataRoot, "data-root", "", "")
	fs.StringVarP(&f.storageDriver, "storage-driver", "s", "", "")
	fs.StringVar(&f.usernsRemap, "userns-remap", "", "")
	fs.StringVar(&f.httpProxy, "http-proxy", "", "")
	fs.StringVar(&f.httpsProxy, "https-proxy", "", "")
	fs.StringVar(&f.noProxy, "no-proxy", "", "")
	fs.StringArrayVar(&f.registryMirrors, "registry-mirror", nil, "")
	fs.StringArrayVar(&f.insecure, "insecure-registry", nil, "")
	fs.StringArrayVar(&f.networkOpts, "default-network-opt", nil, "")
	fs.StringArrayVar(&f.features, "feature", nil, "")
	fs.String("mtu", "", "")
	// Short flags can be combined in one argument, with a value directly after the last one, so
	// all of them must be known.
	for _, name := range []string{"bridge b", "group G", "host H", "log-level l", "pidfile p", "graph g"} {
		long, short, _ := strings.Cut(name, " ")
		fs.StringArrayP(long, short, nil, "")
	}
	for _, name := range []string{"debug D", "help h", "restart r", "version v"} {
		long, short, _ := strings.Cut(name, " ")
		fs.BoolP(long, short, false, "")
	}

	if err := fs.Parse(args); err != nil {
		return flags{}, fmt.Errorf("read dockerd's flags: %w", err)
	}
	fs.Visit(func(flag *pflag.Flag) { f.given[flag.Name] = true })
	f.end = len(args)
	if n := fs.ArgsLenAtDash(); n >= 0 {
		f.end -= fs.NArg() - n + 1
	}
	return f, nil
}

// feature returns the value that --feature sets for a name, and whether it sets one. NAME is
// NAME=true.
func (f flags) feature(name string) (on, said bool) {
	for _, v := range f.features {
		key, value, ok := strings.Cut(v, "=")
		if key != name {
			continue
		}
		on, said = !ok, true
		if ok {
			on, _ = strconv.ParseBool(value) // dockerd refuses other values
		}
	}
	return on, said
}

// bridgeMTU reports whether --default-network-opt sets the MTU of bridges.
func (f flags) bridgeMTU() bool {
	return slices.ContainsFunc(f.networkOpts, func(v string) bool { return strings.HasPrefix(v, "bridge="+mtuOption+"=") })
}
