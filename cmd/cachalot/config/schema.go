package config

import (
	"reflect"
	"time"

	"github.com/cachalot-registry/cachalot/storage"
)

// Schema returns the JSON Schema (draft-07) of configuration files.
func Schema() map[string]any { return schemaOf(reflect.TypeFor[Config]()) }

// orVariable allows a value with a variable, whose content the schema cannot check.
const orVariable = `|\$`

// schemaOf returns the schema of the values that [decoder.value] accepts for a type of
// [Config].
func schemaOf(t reflect.Type) map[string]any {
	single := func(pattern string, types ...string) map[string]any {
		s := map[string]any{"type": append(types, "string")}
		if pattern != "" {
			s["pattern"] = pattern + orVariable
		}
		return s
	}
	switch t {
	case reflect.TypeFor[string]():
		return single("", "number", "boolean")
	case reflect.TypeFor[int]():
		return single(`^[+-]?[0-9]+$`, "integer")
	case reflect.TypeFor[float64]():
		return single(`^[+-]?[0-9.]+(e[+-]?[0-9]+)?$`, "number")
	case reflect.TypeFor[bool]():
		return single(`^(true|True|TRUE|false|False|FALSE)$`, "boolean")
	case reflect.TypeFor[time.Duration]():
		s := single(`^[+-]?(0|([0-9]+(\.[0-9]*)?|\.[0-9]+)(ns|us|µs|μs|ms|s|m|h))+$`, "integer")
		s["minimum"], s["maximum"] = 0, 0 // the only number that needs no unit
		return s
	case reflect.TypeFor[storage.Size]():
		return single(`^ *[0-9.]+ *([KkMGTP]i?B?|B|%)? *$`, "number")
	}
	switch t.Kind() {
	case reflect.Pointer:
		return schemaOf(t.Elem())
	case reflect.Map: // of upstreams; null if nothing is below the key
		return map[string]any{"type": []string{"object", "null"}, "additionalProperties": schemaOf(t.Elem())}
	case reflect.Slice:
		types := []string{"array"}
		if t.Elem().Kind() == reflect.Struct {
			types = append(types, "null")
		}
		return map[string]any{"type": types, "items": schemaOf(t.Elem())}
	default: // a section; null if all its keys are commented out
		keys := map[string]any{}
		for f := range t.Fields() {
			keys[f.Tag.Get("yaml")] = schemaOf(f.Type)
		}
		return map[string]any{"type": []string{"object", "null"}, "additionalProperties": false, "properties": keys}
	}
}
