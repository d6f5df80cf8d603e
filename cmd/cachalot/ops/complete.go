package ops

import (
	"context"
	"encoding/json"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/cachalot-registry/cachalot/proxy/admin"
	"github.com/spf13/cobra"
)

const (
	// completeTime limits the wait after the key for completion.
	completeTime = 2 * time.Second
	// mostCompletions limits the list, so that it stays readable.
	mostCompletions = 200
)

// complete registers the values of a flag for completion.
func complete(cmd *cobra.Command, flag string, values ...string) {
	_ = cmd.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp)) // the flag exists
}

// completer returns the completions of what was written; none if the mirror does not answer.
type completer func(ask *asker, written string) []string

type completion = func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective)

// completes returns the completion of the first argument.
func (m *Mirror) completes(with completer) completion {
	return func(cmd *cobra.Command, args []string, written string) ([]string, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return m.offer(cmd.Context(), with, written)
	}
}

// completesAll returns the completion of every argument.
func (m *Mirror) completesAll(with completer) completion {
	return func(cmd *cobra.Command, _ []string, written string) ([]string, cobra.ShellCompDirective) {
		return m.offer(cmd.Context(), with, written)
	}
}

// completesFlag registers the completion of a flag's values.
func (m *Mirror) completesFlag(cmd *cobra.Command, flag string, with completer) {
	_ = cmd.RegisterFlagCompletionFunc(flag, m.completesAll(with)) // the flag exists
}

func (m *Mirror) offer(ctx context.Context, with completer, written string) ([]string, cobra.ShellCompDirective) {
	c, err := m.client()
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	defer c.close()
	ctx, cancel := context.WithTimeout(ctx, completeTime)
	defer cancel()
	found := with(&asker{ctx, c}, written)
	// A shell shows completions, and evaluates parts of them: only names are returned.
	found = slices.DeleteFunc(found, func(s string) bool {
		return !strings.HasPrefix(s, written) || strings.ContainsFunc(s, func(r rune) bool {
			return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && !strings.ContainsRune("._-/:*?[]", r)
		})
	})
	return found, cobra.ShellCompDirectiveNoFileComp
}

// asker sends the requests of a completion.
type asker struct {
	ctx context.Context // of one completion
	c   *client
}

func (a *asker) items(path string, q url.Values, each func(json.RawMessage)) {
	_, _, _ = a.c.list(a.ctx, path, q, path, mostCompletions, func(_ map[string]json.RawMessage, items []json.RawMessage) error {
		for _, item := range items {
			each(item)
		}
		return nil
	})
}

func (a *asker) pins() (patterns []string) {
	var answer admin.PinsAnswer
	if body, err := a.c.get(a.ctx, "pins", nil); err != nil || a.c.read(body, &answer) != nil {
		return nil
	}
	for _, p := range answer.Pins {
		if p.Source == "api" {
			patterns = append(patterns, p.Match)
		}
	}
	return patterns
}

func upstreams(a *asker, _ string) (names []string) {
	all, err := a.c.upstreams(a.ctx)
	if err != nil {
		return nil
	}
	for name := range all {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// repositories returns those that begin with what was written, in the form in which it was
// written: in full, or without docker.io/ or docker.io/library/.
func repositories(a *asker, written string) (names []string) {
	for _, prefix := range []string{"", "docker.io/library/", "docker.io/"} {
		if prefix != "" && written == "" {
			break // the first prefix found all
		}
		a.items("repositories", url.Values{"prefix": {prefix + written}}, func(item json.RawMessage) {
			var r admin.RepositoryAnswer
			if json.Unmarshal(item, &r) == nil {
				names = append(names, strings.TrimPrefix(r.Name, prefix))
			}
		})
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// images returns repositories or, after a colon, the tags of that repository.
func images(a *asker, written string) (names []string) {
	slash, colon := strings.LastIndexByte(written, '/'), strings.LastIndexByte(written, ':')
	if colon <= slash {
		return repositories(a, written)
	}
	a.items("tags", url.Values{"repository": {written[:colon]}}, func(item json.RawMessage) {
		var t admin.TagAnswer
		if json.Unmarshal(item, &t) == nil {
			names = append(names, written[:colon+1]+t.Tag)
		}
	})
	return names
}
