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

// tagList is a page of a repository's tags, as it is sent: what is written once for
// hundreds of clients costs each of them a copy and no more. It is not changed.
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

// readTagList reads one that was kept.
func readTagList(ctx context.Context, body []byte) (tagList, error) {
	var page upstream.TagPage
	if err := bounds.Unmarshal(ctx, body, &page); err != nil {
		return tagList{}, fmt.Errorf("read stored tag list: %w", err)
	}
	return newTagList(page), nil
}

// size is what the list takes of memory, in bytes.
func (l tagList) size() int { return len(l.text) + 8*len(l.ends) }

// quoted is a text in JSON.
func quoted(s string) []byte {
	b, err := json.Marshal(s)
	if err != nil {
		return []byte(`""`) // strings always marshal
	}
	return b
}

// start is where a tag begins in text.
func (l tagList) start(i int) int {
	if i == 0 {
		return 0
	}
	return l.ends[i-1] + len(",")
}

// tag is a tag, in JSON.
func (l tagList) tag(i int) []byte { return l.text[l.start(i):l.ends[i]] }

// slice is the tags from one on and before another, and nothing of the others in memory.
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

// page is the first n tags after one, which lead to the others; n < 0: all of them, and
// last "": from the first one on.
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

// after is where the tags after one begin; where there is no such tag, the first one that
// is larger.
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

// inner is a text in JSON without its quotes, which sort before some of a tag's letters
// and after others.
func inner(text []byte) []byte { return text[1 : len(text)-1] }

// parts are a tag list of the API (OCI distribution-spec, "Listing tags").
func (l tagList) parts(name string) iter.Seq[[]byte] {
	return slices.Values([][]byte{[]byte(`{"name":`), quoted(name), []byte(`,"tags":[`), l.text, []byte("]}")})
}
