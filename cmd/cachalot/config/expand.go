package config

import (
	"errors"
	"fmt"
	"strings"
)

// expand replaces each ${NAME} in a value by the environment variable NAME, and $${ by ${. It
// works on parsed values, and does not expand the result again: a variable cannot add a key or
// name another variable. Errors never contain the value.
func expand(value string, lookup func(string) (string, bool)) (string, error) {
	var b strings.Builder
	for {
		i := strings.Index(value, "${")
		if i < 0 {
			b.WriteString(value)
			return b.String(), nil
		}
		if i > 0 && value[i-1] == '$' {
			b.WriteString(value[:i-1] + "${")
			value = value[i+len("${"):]
			continue
		}
		b.WriteString(value[:i])
		name, rest, closed := strings.Cut(value[i+len("${"):], "}")
		if !closed || !isVariable(name) {
			return "", errors.New("${ is not followed by a variable's name and }; write ${NAME}, or $${ for the two characters themselves")
		}
		v, ok := lookup(name)
		if !ok {
			return "", fmt.Errorf("the environment variable %s is not set; set it, or write $${%s} for the text itself", name, name)
		}
		b.WriteString(v)
		value = rest
	}
}

func isVariable(name string) bool {
	for i, r := range name {
		letter := r == '_' || 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z'
		digit := '0' <= r && r <= '9'
		if !letter && (i == 0 || !digit) {
			return false
		}
	}
	return name != ""
}
