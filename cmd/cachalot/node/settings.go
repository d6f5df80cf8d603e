package node

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"

	"github.com/pelletier/go-toml/v2" // containerd's own parser
)

// settingsFile is containerd's configuration on a machine where nothing else writes it.
const settingsFile = "/etc/containerd/config.toml"

// settings is containerd's configuration.
type settings struct {
	content []byte // empty: there is none
	version int    // of its format
	table   string // of the registries
	values  map[string]any
	others  []map[string]any // the files that it imports
}

// readSettings reads the configuration of a containerd of the given version.
func readSettings(root, containerd string) (settings, error) {
	content, err := os.ReadFile(filepath.Join(root, settingsFile))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return settings{}, err
	}
	s, err := parseSettings(content, containerd)
	if err != nil {
		return settings{}, err
	}
	imports, _ := s.values["imports"].([]any)
	for _, pattern := range imports {
		name, _ := pattern.(string)
		if !filepath.IsAbs(name) {
			name = filepath.Join(filepath.Dir(settingsFile), name)
		}
		files, err := filepath.Glob(filepath.Join(root, name))
		if err != nil {
			return settings{}, fmt.Errorf("%s: imports: %w", settingsFile, err)
		}
		for _, file := range files {
			content, err := os.ReadFile(file)
			var values map[string]any
			if err == nil {
				err = toml.Unmarshal(content, &values)
			}
			if err != nil {
				return settings{}, fmt.Errorf("%s, which %s imports: %w", file, settingsFile, err)
			}
			s.others = append(s.others, values)
		}
	}
	return s, nil
}

// parseSettings parses the file alone.
func parseSettings(content []byte, containerd string) (settings, error) {
	s := settings{content: content, version: 1, values: map[string]any{}}
	if err := toml.Unmarshal(content, &s.values); err != nil {
		return settings{}, fmt.Errorf("%s: %w", settingsFile, err)
	}
	if v, ok := s.values["version"].(int64); ok {
		s.version = int(v)
	} else if len(content) == 0 {
		if s.version = 3; strings.HasPrefix(containerd, "1.") {
			s.version = 2
		}
	}
	switch {
	case s.version < 2:
		s.table = "cri"
	case s.version == 2:
		s.table = "io.containerd.grpc.v1.cri"
	default:
		s.table = "io.containerd.cri.v1.images"
	}
	return s, nil
}

// mend says how to have containerd read a folder.
func (s settings) mend(dir string) string {
	return fmt.Sprintf("write config_path = %q in the table [plugins.%q.registry] of %s, and restart containerd", dir, s.table, settingsFile)
}

// registries returns the tables of the registries in all files, of any version.
func (s settings) registries() []map[string]any {
	var found []map[string]any
	for _, values := range append([]map[string]any{s.values}, s.others...) {
		for _, plugin := range []string{"cri", "io.containerd.grpc.v1.cri", "io.containerd.cri.v1.images"} {
			if r := subtable(values, "plugins", plugin, "registry"); r != nil {
				found = append(found, r)
			}
		}
	}
	return found
}

// subtable returns a table within another one; nil: there is none.
func subtable(values map[string]any, keys ...string) map[string]any {
	for _, k := range keys {
		values, _ = values[k].(map[string]any)
	}
	return values
}

// refusal says why the configuration cannot be changed; nil: it can.
func (s settings) refusal() error {
	if s.version < 2 {
		return fmt.Errorf("%s has version 1: write what \"containerd config migrate\" prints", settingsFile)
	}
	for _, r := range s.registries() {
		if path, _ := r["config_path"].(string); path != "" {
			return fmt.Errorf("%s or a file that it imports has config_path = %q: name that folder with --config-path", settingsFile, path)
		}
		for _, key := range []string{"mirrors", "configs"} {
			if t, _ := r[key].(map[string]any); len(t) > 0 {
				// containerd's CRI does not start with mirrors beside config_path.
				return fmt.Errorf("%s or a file that it imports has registry.%s: move them to hosts.toml files", settingsFile, key)
			}
		}
	}
	return nil
}

// was begins the comment with the line that a block has replaced.
func was(owner string) string { return prefix + owner + ": was " }

var (
	pathRegexp   = regexp.MustCompile(`^[ \t]*config_path[ \t]*=`)
	headerRegexp = regexp.MustCompile(`^[ \t]*\[.*registry['"]?[ \t]*\]`)
)

// withPath returns the file with config_path in the table of the registries, in a block, and
// changes nothing else: at the first of all places where containerd reads the result so.
func (s settings) withPath(owner, dir string) ([]byte, error) {
	if err := s.refusal(); err != nil {
		return nil, err
	}
	want := map[string]any{}
	if err := toml.Unmarshal(s.content, &want); err != nil {
		return nil, err
	}
	set(want, dir, "plugins", s.table, "registry", "config_path")
	key := fmt.Sprintf("config_path = %q\n", dir)
	header := fmt.Sprintf("[plugins.%q.registry]\n", s.table)
	if len(s.content) == 0 {
		want["version"] = int64(s.version)
		header = fmt.Sprintf("version = %d\n\n", s.version) + header
	}
	lines := slices.Collect(bytes.Lines(s.content))
	edit := func(i, replaced int, text string) []byte {
		b := block{owner: owner, lines: text}
		at := bytes.Join(lines[:i], nil)
		if len(at) > 0 && at[len(at)-1] != '\n' {
			return slices.Concat(at, []byte("\n"+b.text()))
		}
		rest := bytes.Join(lines[i+replaced:], nil)
		if replaced > 0 && len(rest) == 0 && !bytes.HasSuffix(s.content, []byte("\n")) {
			return slices.Concat(at, []byte(b.text()))
		}
		return slices.Concat(at, []byte(b.text()+"\n"), rest)
	}
	var tried [][]byte
	for i, line := range lines {
		switch {
		case pathRegexp.Match(line):
			tried = append(tried, edit(i, 1, key+was(owner)+strings.TrimSuffix(string(line), "\n")+"\n"))
		case headerRegexp.Match(line):
			tried = append(tried, edit(i+1, 0, key))
		}
	}
	for _, file := range append(tried, edit(len(lines), 0, header+key)) {
		var got map[string]any
		if err := toml.Unmarshal(file, &got); err == nil && reflect.DeepEqual(got, want) {
			return file, nil
		}
	}
	return nil, fmt.Errorf("%s has no place for config_path: %s", settingsFile, s.mend(dir))
}

// set sets a value in a table within others, which it makes.
func set(values map[string]any, value any, keys ...string) {
	for ; len(keys) > 1; keys = keys[1:] {
		next, ok := values[keys[0]].(map[string]any)
		if !ok {
			next = map[string]any{}
			values[keys[0]] = next
		}
		values = next
	}
	values[keys[0]] = value
}

// withoutPath returns the file as it was before withPath.
func withoutPath(file []byte, owner string) ([]byte, error) {
	if i := atLine(file, was(owner)); i >= 0 {
		from, to := atLine(file, begin(owner)), atLine(file, end(owner))
		if from < 0 || to < i || i < from {
			return nil, fmt.Errorf("%s: a line of the block that begins with %q is missing; restore the file by hand", settingsFile, strings.TrimSpace(begin(owner)))
		}
		old, _, _ := bytes.Cut(file[i+len(was(owner)):], []byte("\n"))
		return slices.Concat(file[:from], old, file[to+len(end(owner)):]), nil
	}
	return without(file, owner)
}
