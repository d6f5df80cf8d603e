package config

import (
	"fmt"
	"slices"
	"strings"

	"github.com/goccy/go-yaml/token"
)

// Problem is one thing wrong in a configuration file.
type Problem struct {
	line, column int    // of the key, from 1; 0: of the file as a whole
	key          string // dotted, as in "storage.max_size"; may be empty
	message      string // what is wrong; what to write instead
}

// Error is all that is wrong in a configuration file.
type Error struct {
	file     string
	problems []Problem
}

// Error has a line FILE:LINE:COLUMN: KEY: MESSAGE for each problem.
func (e *Error) Error() string {
	var b strings.Builder
	for i, p := range e.problems {
		if i > 0 {
			b.WriteByte('\n')
		}
		b.WriteString(e.file)
		if p.line > 0 {
			fmt.Fprintf(&b, ":%d:%d", p.line, p.column)
		}
		if p.key != "" {
			b.WriteString(": " + p.key)
		}
		b.WriteString(": " + p.message)
	}
	return b.String()
}

// sorted orders the problems as the file is read.
func (e *Error) sorted() *Error {
	slices.SortStableFunc(e.problems, func(a, b Problem) int {
		if a.line != b.line {
			return a.line - b.line
		}
		return a.column - b.column
	})
	return e
}

// positions says where each key stands in the file.
type positions map[string]*token.Position

// of returns where the first of keys stands that the file has; else where the
// nearest section around the first one does.
func (at positions) of(keys ...string) (line, column int) {
	for _, key := range keys {
		if p := at[key]; p != nil {
			return p.Line, p.Column
		}
	}
	for key := keys[0]; ; {
		i := strings.LastIndexAny(key, ".[")
		if i < 0 {
			return 0, 0
		}
		key = key[:i]
		if p := at[key]; p != nil {
			return p.Line, p.Column
		}
	}
}

// suggestion is the one of the known keys that was probably meant by key, or "".
// A key that is right in another section is named in full.
func suggestion(key string, siblings, all []string) string {
	best, distance := "", len(key)/3+1
	for _, s := range siblings {
		if d := editDistance(key, s); d <= distance && d < max(len(key), len(s)) {
			best, distance = s, d-1
		}
	}
	if best != "" {
		return best
	}
	for _, full := range all {
		if strings.HasSuffix(full, "."+key) {
			return full
		}
	}
	return ""
}

// editDistance counts the letters to add, drop or change between a and b.
func editDistance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j]+1, diagonal+1)
		}
	}
	return row[len(b)]
}
