package proxy

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"iter"
	"net/url"
	"slices"
	"strconv"

	"github.com/cachalot-registry/cachalot/bounds"
	"github.com/cachalot-registry/cachalot/upstream"
)

// tagList is a page of a repository's tags, encoded once for all clients. It never changes.
type tagList struct {
	text []byte // the tags in JSON, with commas between: "a","b"
	ends []int  // where each ends in text
	next string // the query of the next page; "": there is none
}

func newTagList(page upstream.TagPage) tagList {
	l := tagList{next: page.Next, ends: make([]int, 0, len(page.Tags))}
	for i, tag := range page.Tags {
		if i > 0 {
			l.text = append(l.text, ',')
		}
		l.text = append(l.text, quoted(tag)...)
		l.ends = append(l.ends, len(l.text))
	}
	return l
}

// readTagList reads a stored one.
func readTagList(ctx context.Context, body []byte) (tagList, error) {
	var page upstream.TagPage
	if err := bounds.Unmarshal(ctx, body, &page); err != nil {
		return tagList{}, fmt.Errorf("read stored tag list: %w", err)
	}
	return newTagList(page), nil
}

// size returns the memory of the list, in bytes.
func (l tagList) size() int { return len(l.text) + 8*len(l.ends) }

// quoted returns a text in JSON.
func quoted(s string) []byte {
	b, err := json.Marshal(s)
	if err != nil {
		return []byte(`""`) // strings always marshal
	}
	return b
}

// start returns where a tag begins in text.
func (l tagList) start(i int) int {
	if i == 0 {
		return 0
	}
	return l.ends[i-1] + len(",")
}

// tag returns a tag in JSON.
func (l tagList) tag(i int) []byte { return l.text[l.start(i):l.ends[i]] }

// slice returns the tags from one index to before another, without the memory of the others.
func (l tagList) slice(from, to int) tagList {
	switch {
	case from == to:
		return tagList{}
	case to-from == len(l.ends):
		return l
	}
	begin := l.start(from)
	part := tagList{text: bytes.Clone(l.text[begin:l.ends[to-1]]), ends: slices.Clone(l.ends[from:to])}
	for i := range part.ends {
		part.ends[i] -= begin
	}
	return part
}

// page returns the first n tags after last, with the query of the page after them. n < 0:
// all; last "": from the first tag on.
func (l tagList) page(last string, n int) tagList {
	from, to := 0, len(l.ends)
	if last != "" {
		from = l.after(last)
	}
	if n < 0 || n >= to-from {
		return l.slice(from, to)
	}
	to = from + n
	page := l.slice(from, to)
	if n > 0 && json.Unmarshal(l.tag(to-1), &last) == nil { // it was written so
		page.next = url.Values{"n": {strconv.Itoa(n)}, "last": {last}}.Encode()
	}
	return page
}

// after returns the index of the tag after last or, if there is no such tag, of the first
// tag that is larger.
func (l tagList) after(last string) int {
	want, larger := quoted(last), len(l.ends)
	for i := range l.ends {
		switch tag := l.tag(i); {
		case bytes.Equal(tag, want):
			return i + 1
		case larger == len(l.ends) && bytes.Compare(inner(tag), inner(want)) > 0:
			larger = i
		}
	}
	return larger
}

// inner returns a text in JSON without its quotes: they would change the order.
func inner(text []byte) []byte { return text[1 : len(text)-1] }

// parts returns the list as the API sends it (OCI distribution-spec, "Listing tags").
func (l tagList) parts(name string) iter.Seq[[]byte] {
	return slices.Values([][]byte{[]byte(`{"name":`), quoted(name), []byte(`,"tags":[`), l.text, []byte("]}")})
}
