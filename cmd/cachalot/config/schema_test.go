package config

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"
	"github.com/santhosh-tekuri/jsonschema/v6"
)

// compiled is the schema, compiled as editors and Helm do it.
func compiled(t *testing.T) *jsonschema.Schema {
	t.Helper()
	text, err := json.Marshal(Schema())
	if err != nil {
		t.Fatal(err)
	}
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	c := jsonschema.NewCompiler()
	c.DefaultDraft(jsonschema.Draft7)
	if err := c.AddResource("config.json", doc); err != nil {
		t.Fatal(err)
	}
	s, err := c.Compile("config.json")
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// asJSON converts a YAML file to JSON values, as Helm does.
func asJSON(t *testing.T, file []byte) any {
	t.Helper()
	text, err := yaml.YAMLToJSON(file)
	if err != nil {
		t.Fatal(err)
	}
	v, err := jsonschema.UnmarshalJSON(bytes.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// TestSchemaTakesValid: the schema accepts every file that cachalot accepts.
func TestSchemaTakesValid(t *testing.T) {
	t.Parallel()
	s := compiled(t)
	for _, text := range []string{
		"", "storage: {max_size: 1.5 TiB, min_free: 5%, high_mark: 98.5%}", "storage: {max_size: 0, min_free: 500MB, scrub_every: 0}",
		"tags: {fresh_for: 1h30m, max_stale: 720h, negative_for: 1.5s, revalidate_timeout: .5s}", "send_timeout: 0s",
		"max_connections: ${CONNECTIONS}\nstorage: {max_size: '${SIZE}'}\ntags: {fresh_for: '${FRESH}s'}", "max_connections: '20'",
		"upstreams:\n  docker.io:\n  quay.io: {password: 0123, username: true}\n", "upstreams:\nrules:\ntags:\n", "rules: [{match: [docker.io/**], no_store: false, keep_for: 24h}]",
		"tracing: {sample_ratio: 0.1}", "tracing: {sample_ratio: '1e-3'}",
	} {
		if _, err := Parse("", []byte(text), func(string) (string, bool) { return "1", true }); err != nil {
			t.Errorf("%q: cachalot says %v", text, err)
		}
		if err := s.Validate(asJSON(t, []byte(text))); err != nil && text != "" {
			t.Errorf("%q: %v", text, err)
		}
	}
	file, err := os.ReadFile("../../../config.yml")
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Validate(asJSON(t, file)); err != nil {
		t.Error(err)
	}
}

// TestSchemaRefuses: the schema rejects unknown keys and values of a wrong form.
func TestSchemaRefuses(t *testing.T) {
	t.Parallel()
	s := compiled(t)
	refused := 0
	for name := range invalidConfigs {
		file, err := os.ReadFile(filepath.Join("testdata", "invalid-"+name+".yml"))
		if err != nil {
			t.Fatal(err)
		}
		text, err := yaml.YAMLToJSON(file)
		if err != nil {
			continue
		}
		v, err := jsonschema.UnmarshalJSON(bytes.NewReader(text))
		if err != nil {
			t.Fatal(err)
		}
		said := invalidConfigs[name]
		form := slices.ContainsFunc([]string{"unknown key", "is not a duration", "is not a size", "is not a whole number", "found a list", "found keys"}, func(s string) bool { return strings.Contains(said, s) })
		err = s.Validate(v)
		if form && err == nil {
			t.Errorf("%s passes, where cachalot says %s", name, said)
		}
		if err != nil {
			refused++
		}
	}
	if refused < 20 {
		t.Errorf("only %d of %d wrong files are refused", refused, len(invalidConfigs))
	}
}

// TestSchemaKeys: the schema has every key.
func TestSchemaKeys(t *testing.T) {
	t.Parallel()
	text, err := json.Marshal(schemaOf(reflect.TypeFor[Config]()))
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range keysOf(reflect.TypeFor[Config](), "") {
		last := key[strings.LastIndexByte(key, '.')+1:]
		if !bytes.Contains(text, []byte(`"`+last+`":{`)) {
			t.Errorf("no %s", key)
		}
	}
}
