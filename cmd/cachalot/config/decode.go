package config

import (
	"bytes"
	"encoding"
	"errors"
	"fmt"
	"io"
	"os"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"
)

// maxConfigSize is far above any real file. It limits the read if the path is wrong, such as
// that of a log or a device.
const maxConfigSize = 1 << 20

// Load reads the file over the defaults and checks the result. Without a file ("") it returns
// the defaults. Problems in the file are an [Error].
func Load(file string, lookup func(string) (string, bool)) (Config, error) {
	if file == "" {
		return Defaults(), nil
	}
	data, err := readFile(file)
	if err != nil {
		return Config{}, &Error{file: file, problems: []Problem{{message: err.Error()}}}
	}
	return Parse(file, data, lookup)
}

func readFile(file string) ([]byte, error) {
	f, err := os.Open(file)
	if err != nil {
		if path, ok := errors.AsType[*os.PathError](err); ok {
			err = path.Err // the message begins with the file's name already
		}
		return nil, fmt.Errorf("open the configuration: %w", err)
	}
	defer func() { _ = f.Close() }()
	data, err := io.ReadAll(io.LimitReader(f, maxConfigSize+1))
	if err != nil {
		return nil, fmt.Errorf("read the configuration: %w", err)
	}
	if len(data) > maxConfigSize {
		return nil, errors.New("larger than 1 MiB; this is not a configuration of cachalot")
	}
	return data, nil
}

// Parse is [Load] for the bytes of a file.
func Parse(file string, data []byte, lookup func(string) (string, bool)) (Config, error) {
	d := &decoder{lookup: lookup, at: positions{}, all: keysOf(reflect.TypeFor[Config](), "")}
	c := Defaults()
	if d.document(data, &c) {
		c.complete()
		d.problems = append(d.problems, c.validate(d.at, d.problems)...)
	}
	if len(d.problems) > 0 {
		return Config{}, (&Error{file: file, problems: d.problems}).sorted()
	}
	return c, nil
}

// decoder fills a Config from YAML. It walks the syntax tree itself, so that one run finds
// every problem, with its line and what to write instead.
type decoder struct {
	lookup   func(string) (string, bool)
	at       positions
	all      []string // every known key
	problems []Problem
}

// document reads the file into c, and reports whether it could be parsed.
func (d *decoder) document(data []byte, c *Config) bool {
	data = bytes.TrimPrefix(data, []byte("\uFEFF"))
	if !utf8.Valid(data) {
		d.problems = append(d.problems, Problem{message: "not UTF-8 text; save the file as UTF-8"})
		return false
	}
	// mapping reports duplicate keys, along with other problems.
	file, err := parser.ParseBytes(data, 0, parser.AllowDuplicateMapKey())
	if err != nil {
		d.syntax(err)
		return false
	}
	for i, doc := range file.Docs {
		switch {
		case doc.Body == nil:
		case i > 0:
			d.fail("", firstToken(doc.Body), "a second document; keep one, without a --- line")
		default:
			d.value("", doc.Body, reflect.ValueOf(c).Elem())
		}
	}
	return true
}

// syntax reports the error of the YAML parser, without its excerpt of the file, which could
// contain a password.
func (d *decoder) syntax(err error) {
	y, ok := errors.AsType[yaml.Error](err)
	if !ok {
		d.problems = append(d.problems, Problem{message: "not YAML"})
		return
	}
	d.fail("", y.GetToken(), "not YAML: "+y.GetMessage()+hint(y.GetToken()))
}

// hint returns what to write instead at the token where the YAML parser stopped.
func hint(at *token.Token) string {
	if at == nil {
		return ""
	}
	switch at.Type {
	case token.SequenceEntryType:
		return "; begin all items of a list in one column, and remove a value such as [] from the key above them"
	case token.AliasType, token.MappingStartType, token.SequenceStartType:
		return "; write a text with *, { or [ in quotes"
	}
	return ""
}

func (d *decoder) fail(key string, at *token.Token, message string) {
	p := Problem{key: key, message: message}
	if at != nil && at.Position != nil {
		p.line, p.column = at.Position.Line, at.Position.Column
	}
	d.problems = append(d.problems, p)
}

// value reads node, the value of key, into v, which holds the default.
func (d *decoder) value(key string, node ast.Node, v reflect.Value) {
	switch into := v.Addr().Interface().(type) {
	case *string:
		if text, ok := d.scalar(key, node, "a text, in quotes if need be"); ok {
			*into = text
		}
	case *int:
		want := fmt.Sprintf("a whole number such as %d", *into)
		if text, ok := d.scalar(key, node, want); ok {
			n, err := strconv.Atoi(text)
			if err != nil {
				d.failValue(key, node, fmt.Sprintf("%q is not a whole number; write one such as %d", text, *into))
				return
			}
			*into = n
		}
	case *float64:
		if text, ok := d.scalar(key, node, "a number such as 0.1"); ok {
			n, err := strconv.ParseFloat(text, 64)
			if err != nil {
				d.failValue(key, node, fmt.Sprintf("%q is not a number; write one such as 0.1", text))
				return
			}
			*into = n
		}
	case *bool:
		if text, ok := d.scalar(key, node, "true or false"); ok {
			*into = strings.EqualFold(text, "true")
			if !*into && !strings.EqualFold(text, "false") {
				d.failValue(key, node, fmt.Sprintf("%q is not known; write true or false", text))
			}
		}
	case *time.Duration:
		example := *into
		if example == 0 { // a key without a default
			example = time.Hour
		}
		if text, ok := d.scalar(key, node, "a duration such as "+brief(example)); ok {
			t, err := time.ParseDuration(text)
			if err != nil {
				d.failValue(key, node, notDuration(text, example))
				return
			}
			*into = t
		}
	case encoding.TextUnmarshaler:
		if text, ok := d.scalar(key, node, "a single value"); ok {
			if err := into.UnmarshalText([]byte(text)); err != nil {
				d.failValue(key, node, err.Error())
			}
		}
	case *[]string:
		d.list(key, node, into)
	case *map[string]Upstream:
		d.upstreams(key, node, into)
	default:
		switch v.Kind() {
		case reflect.Pointer: // an optional value; nil says that the key is absent
			v.Set(reflect.New(v.Type().Elem()))
			d.value(key, node, v.Elem())
		case reflect.Slice:
			d.items(key, node, v)
		default:
			d.section(key, node, v)
		}
	}
}

// scalar returns the text of a single value, with its variables expanded. Numbers and the like
// are returned as written: a password 0123 stays 0123.
func (d *decoder) scalar(key string, node ast.Node, want string) (string, bool) {
	var text string
	switch n := node.(type) {
	case *ast.StringNode:
		text = n.Value
	case *ast.LiteralNode:
		text = n.Value.Value
	case *ast.IntegerNode, *ast.FloatNode, *ast.BoolNode, *ast.InfinityNode, *ast.NanNode:
		text = n.GetToken().Value
	case *ast.NullNode:
		d.failValue(key, node, "no value; write "+want+", or remove the line for the default")
		return "", false
	default:
		d.failValue(key, node, describe(node)+"; write "+want)
		return "", false
	}
	text, err := expand(text, d.lookup)
	if err != nil {
		d.failValue(key, node, err.Error())
		return "", false
	}
	return text, true
}

func (d *decoder) list(key string, node ast.Node, into *[]string) {
	seq, ok := node.(*ast.SequenceNode)
	if !ok {
		d.failValue(key, node, describe(node)+"; write a list such as [one, two]")
		return
	}
	*into = []string{} // not nil: the key is given, even if the list is empty
	for i, n := range seq.Values {
		item := fmt.Sprintf("%s[%d]", key, i)
		d.at[item] = firstToken(n).Position
		if text, ok := d.scalar(item, n, "a text, in quotes if need be"); ok {
			*into = append(*into, text)
		}
	}
}

// items reads a list of mappings into v, a slice of structs.
func (d *decoder) items(key string, node ast.Node, v reflect.Value) {
	if isNull(node) {
		return // a list whose items are all commented out
	}
	names := strings.Join(fieldNames(v.Type().Elem()), ", ")
	seq, ok := node.(*ast.SequenceNode)
	if !ok {
		d.failValue(key, node, describe(node)+`; write a list, with "- " before the first key of each item; the keys are `+names)
		return
	}
	v.SetZero()
	for i, n := range seq.Values {
		v.Set(reflect.Append(v, reflect.Zero(v.Type().Elem())))
		item := fmt.Sprintf("%s[%d]", key, i)
		d.at[item] = firstToken(n).Position
		switch n.(type) {
		case *ast.MappingNode, *ast.MappingValueNode:
			d.section(item, n, v.Index(i))
		default:
			d.failValue(item, n, describe(n)+"; write some of the keys "+names+", or remove the item")
		}
	}
}

// upstreams replaces the default registries by those in the file. A key with nothing below it
// counts as absent.
func (d *decoder) upstreams(key string, node ast.Node, into *map[string]Upstream) {
	if isNull(node) {
		return
	}
	given := map[string]Upstream{}
	ok := d.mapping(key, node, func(name string, value *ast.MappingValueNode) {
		u := newUpstream()
		d.value(join(key, name), value.Value, reflect.ValueOf(&u).Elem())
		given[name] = u
	})
	if ok {
		*into = given
	}
}

// section reads a mapping into the struct v.
func (d *decoder) section(key string, node ast.Node, v reflect.Value) {
	if isNull(node) {
		return // a section whose keys are all commented out
	}
	names := fieldNames(v.Type())
	d.mapping(key, node, func(name string, value *ast.MappingValueNode) {
		if i := slices.Index(names, name); i >= 0 {
			d.value(join(key, name), value.Value, v.Field(i))
			return
		}
		message := "unknown key; the keys here are " + strings.Join(names, ", ")
		if s := suggestion(name, names, d.all); s != "" {
			message = "unknown key; did you mean " + s + "?"
		}
		d.fail(join(key, name), value.Key.GetToken(), message)
	})
}

// mapping calls each for every key of node, and records the key's position. It reports whether
// node is a mapping.
func (d *decoder) mapping(key string, node ast.Node, each func(name string, value *ast.MappingValueNode)) bool {
	var values []*ast.MappingValueNode
	switch n := node.(type) {
	case *ast.MappingNode:
		values = n.Values
	case *ast.MappingValueNode:
		values = []*ast.MappingValueNode{n}
	default:
		d.failValue(key, node, describe(node)+"; write keys, each on a line of its own, as in config.yml")
		return false
	}
	for _, value := range values {
		name, ok := keyName(value.Key)
		if !ok {
			d.fail(key, value.Key.GetToken(), "not a plain key; write the keys of config.yml, each with its value")
			continue
		}
		full := join(key, name)
		if first := d.at[full]; first != nil {
			d.fail(full, value.Key.GetToken(), fmt.Sprintf("given twice, first on line %d; keep one of them", first.Line))
			continue
		}
		d.at[full] = value.Key.GetToken().Position
		each(name, value)
	}
	return true
}

func (d *decoder) failValue(key string, node ast.Node, message string) {
	if p := d.at[key]; p != nil {
		d.problems = append(d.problems, Problem{line: p.Line, column: p.Column, key: key, message: message})
		return
	}
	d.fail(key, firstToken(node), message)
}

// firstToken returns the token at which node begins; a mapping's own token is its first colon.
func firstToken(node ast.Node) *token.Token {
	if m, ok := node.(*ast.MappingNode); ok && len(m.Values) > 0 {
		return m.Values[0].Key.GetToken()
	}
	return node.GetToken()
}

func keyName(key ast.MapKeyNode) (string, bool) {
	switch k := key.(type) {
	case *ast.StringNode:
		return k.Value, true
	case *ast.IntegerNode, *ast.FloatNode, *ast.BoolNode, *ast.NullNode:
		return k.GetToken().Value, true
	}
	return "", false
}

func join(key, name string) string {
	if key == "" {
		return name
	}
	return key + "." + name
}

func isNull(node ast.Node) bool {
	_, ok := node.(*ast.NullNode)
	return ok
}

// describe says what was found in place of the expected value.
func describe(node ast.Node) string {
	switch node.(type) {
	case *ast.NullNode:
		return "found no value"
	case *ast.MappingNode, *ast.MappingValueNode:
		return "found keys"
	case *ast.SequenceNode:
		return "found a list"
	case *ast.AnchorNode, *ast.AliasNode:
		return "YAML anchors and aliases are not supported"
	case *ast.TagNode:
		return "YAML tags are not supported"
	}
	return "found a single value"
}

// notDuration returns the message for an invalid duration. It suggests a valid one for a number
// without a unit, or in days.
func notDuration(text string, example time.Duration) string {
	meant := "one such as " + brief(example)
	if n, err := strconv.Atoi(text); err == nil {
		meant = fmt.Sprintf("%ds", n)
	} else if n, err := strconv.Atoi(strings.TrimSuffix(text, "d")); err == nil {
		meant = fmt.Sprintf("%dh", 24*n)
	}
	return fmt.Sprintf("%q is not a duration; write %s", text, meant)
}

// brief writes 1m0s as 1m.
func brief(t time.Duration) string {
	s := t.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

// fieldNames returns the keys of a section, in the order of the struct's fields.
func fieldNames(t reflect.Type) []string {
	var names []string
	for f := range t.Fields() {
		names = append(names, f.Tag.Get("yaml"))
	}
	return names
}

// keysOf lists the dotted keys of a config struct. Those of an upstream are below NAME, those
// of a list's items below [N].
func keysOf(t reflect.Type, prefix string) []string {
	var keys []string
	for f := range t.Fields() {
		key := join(prefix, f.Tag.Get("yaml"))
		switch kind := f.Type.Kind(); {
		case f.Type == reflect.TypeFor[map[string]Upstream]():
			keys = append(keys, keysOf(f.Type.Elem(), key+".NAME")...)
		case kind == reflect.Slice && f.Type.Elem().Kind() == reflect.Struct:
			keys = append(keys, keysOf(f.Type.Elem(), key+"[N]")...)
		case kind == reflect.Struct && !f.Type.Implements(reflect.TypeFor[encoding.TextMarshaler]()):
			keys = append(keys, keysOf(f.Type, key)...)
		default:
			keys = append(keys, key)
		}
	}
	return keys
}
