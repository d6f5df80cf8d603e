package ops

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/url"
	"slices"
	"strconv"
)

// maxPage is the API's limit for a page.
const maxPage = 1000

// list calls page for each page of a list, whose items are below key, until there are limit
// items (0: all). It returns how many there were, and whether there are more.
func (c *client) list(ctx context.Context, path string, query url.Values, key string, limit int, page func(rest map[string]json.RawMessage, items []json.RawMessage) error) (n int, more bool, err error) {
	query = maps.Clone(query)
	for {
		length := maxPage
		if limit > 0 {
			length = min(length, limit-n)
		}
		query.Set("limit", strconv.Itoa(length))
		body, err := c.get(ctx, path, query)
		if err != nil {
			return n, false, err
		}
		rest := map[string]json.RawMessage{}
		if err := c.read(body, &rest); err != nil {
			return n, false, err
		}
		var items []json.RawMessage
		next := ""
		if err := c.read(rest[key], &items); err != nil {
			return n, false, err
		}
		if b, ok := rest["next"]; ok {
			if err := c.read(b, &next); err != nil {
				return n, false, err
			}
		}
		delete(rest, key)
		delete(rest, "next")
		if err := page(rest, items); err != nil {
			return n, false, err
		}
		n += len(items)
		if next == "" || limit > 0 && n >= limit {
			return n, next != "", nil
		}
		query.Set("cursor", next)
	}
}

// jsonList writes the pages of a list as one JSON object.
type jsonList struct {
	w     io.Writer
	key   string
	begun bool
	items int
}

func (l *jsonList) page(rest map[string]json.RawMessage, items []json.RawMessage) error {
	var b bytes.Buffer
	if !l.begun {
		l.begun = true
		b.WriteString("{\n")
		for _, name := range slices.Sorted(maps.Keys(rest)) {
			fmt.Fprintf(&b, "  %q: %s,\n", name, rest[name])
		}
		fmt.Fprintf(&b, "  %q: [", l.key)
	}
	for _, item := range items {
		if l.items > 0 {
			b.WriteString(",")
		}
		l.items++
		b.WriteString("\n    ")
		if err := json.Indent(&b, item, "    ", "  "); err != nil {
			return err
		}
	}
	_, err := l.w.Write(safeJSON(b.Bytes()))
	return err
}

func (l *jsonList) end() error {
	text := "\n  ]\n}\n"
	if l.items == 0 {
		text = "]\n}\n"
	}
	_, err := io.WriteString(l.w, text)
	return err
}
