package node

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"

	"github.com/BurntSushi/toml"
)

// block is the text of an owner in a hosts.toml.
type block struct {
	owner string
	url   string // of the mirror, as the content names it
	lines string // complete lines
}

const prefix = "# cachalot "

func begin(owner string) string {
	return prefix + owner + `: begin. "cachalot node" made this, and takes it out again.` + "\n"
}

func end(owner string) string { return prefix + owner + ": end." }

// text returns the block with the owner's comments; the last one has no line break.
func (b block) text() string { return begin(b.owner) + b.lines + end(b.owner) }

// with adds the block to a hosts.toml, before all other hosts, and changes nothing else. It
// returns a file that has the block already as it is.
func with(file []byte, b block) ([]byte, error) {
	if bytes.Contains(file, []byte(b.text())) {
		return file, nil
	}
	rest, err := without(file, b.owner)
	if err != nil {
		return nil, err
	}
	before, err := parse(rest)
	if err != nil {
		return nil, fmt.Errorf("not TOML: %w", err)
	}
	if slices.Contains(before.hosts, b.url) {
		return nil, fmt.Errorf("it already has %s, from another program", b.url)
	}
	for _, at := range places(rest) {
		// If the last line has no line break, the block begins with one and ends without one.
		text := b.text() + "\n"
		if at > 0 && rest[at-1] != '\n' {
			text = "\n" + b.text()
		}
		file := slices.Concat(rest[:at], []byte(text), rest[at:])
		if after, err := parse(file); err == nil && after.adds(b.url, before) {
			return file, nil
		}
	}
	return nil, errors.New("no place for the mirror in it; add the mirror yourself, as \"cachalot client containerd\" prints it")
}

// without returns a hosts.toml without an owner's blocks.
func without(file []byte, owner string) ([]byte, error) {
	file = slices.Clone(file)
	for {
		from := atLine(file, begin(owner))
		if from < 0 {
			return file, nil
		}
		length := bytes.Index(file[from:], []byte("\n"+end(owner)))
		if length < 0 {
			return nil, fmt.Errorf("the line %q is missing; remove the block that begins with %q by hand", end(owner), strings.TrimSpace(begin(owner)))
		}
		to := from + length + len("\n"+end(owner))
		switch {
		case to < len(file) && file[to] == '\n':
			to++
		case from > 0: // the last line had no line break, so with added this one
			from--
		}
		file = slices.Delete(file, from, to)
	}
}

// places returns the offsets at which a table may be inserted before the others: before each
// line that begins a table or a block, and at the end. Such a line can also be part of a longer
// value, so the caller parses the result to find the right place.
func places(file []byte) []int {
	var found []int
	within := "" // the owner of the block around the line
	at := 0
	for line := range bytes.Lines(file) {
		s := string(line)
		owner, begins := strings.CutPrefix(s, prefix)
		owner, _, cut := strings.Cut(owner, ": begin.")
		switch {
		case within != "":
			if strings.HasPrefix(s, end(within)) {
				within = ""
			}
		case begins && cut:
			within = owner
			found = append(found, at)
		case strings.HasPrefix(strings.TrimLeft(s, " \t"), "["):
			found = append(found, at)
		}
		at += len(line)
	}
	return append(found, len(file))
}

// atLine returns the offset of the first line that begins with the text, or -1.
func atLine(file []byte, text string) int {
	if bytes.HasPrefix(file, []byte(text)) {
		return 0
	}
	if i := bytes.Index(file, []byte("\n"+text)); i >= 0 {
		return i + 1
	}
	return -1
}

// parsed is the content of a hosts.toml, as containerd reads it.
type parsed struct {
	values map[string]any
	hosts  []string // in the order in which containerd tries them
}

func parse(file []byte) (parsed, error) {
	p := parsed{values: map[string]any{}}
	meta, err := toml.Decode(string(file), &p.values)
	if err != nil {
		return parsed{}, fmt.Errorf("parse: %w", err)
	}
	for _, key := range meta.Keys() {
		if len(key) > 1 && key[0] == "host" && !slices.Contains(p.hosts, key[1]) {
			p.hosts = append(p.hosts, key[1])
		}
	}
	return p, nil
}

// adds reports whether p is the same as before, with one more host, which is the first.
func (p parsed) adds(url string, before parsed) bool {
	if !slices.Equal(p.hosts, append([]string{url}, before.hosts...)) {
		return false
	}
	hosts := maps.Clone(p.values["host"].(map[string]any)) // parse found hosts
	delete(hosts, url)
	values := maps.Clone(p.values)
	if values["host"] = hosts; len(hosts) == 0 {
		delete(values, "host")
	}
	return reflect.DeepEqual(values, before.values)
}
