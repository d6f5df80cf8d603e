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

// Error has all problems of a configuration file.
type Error struct {
	file     string
	problems []Problem
}

// Error returns a line FILE:LINE:COLUMN: KEY: MESSAGE for each problem.
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

// sorted sorts the problems by their position in the file.
func (e *Error) sorted() *Error {
	slices.SortStableFunc(e.problems, func(a, b Problem) int {
		if a.line != b.line {
			return a.line - b.line
		}
		return a.column - b.column
	})
	return e
}

// positions has the position of each key in the file.
type positions map[string]*token.Position

// of returns the position of the first of keys that the file has; if it has none, that of the
// nearest section around the first key.
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

// suggestion returns the known key that was probably meant by key, or "". A key of another
// section is returned in full.
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
