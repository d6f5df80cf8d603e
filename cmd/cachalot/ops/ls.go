package ops

import (
	"encoding/json"
	"fmt"
	"io"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/cachalot-registry/cachalot/proxy/admin"
	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"
)

// listing has the flags of ls.
type listing struct {
	asking

	blobs                                bool
	sort, upstream, minSize, unusedSince string
	limit                                int
}

// listed is a kind of list.
type listed struct {
	path    string // of the API, and the key of its items
	orders  []string
	columns []string
	row     func(t *table, item json.RawMessage, now time.Time) error
}

func (l *listing) kind(args []string) listed {
	switch {
	case l.blobs:
		return listed{"blobs", blobOrders(), []string{"DIGEST", "KIND", "SIZE", "STORED", "LAST USED", "USES", "PINNED", "REPOSITORIES"}, blobRow}
	case len(args) == 1:
		return listed{"tags", nil, []string{"TAG", "DIGEST", "STATE", "CHECKED", "LAST USED", "STORED"}, tagRow}
	}
	return listed{"repositories", repositoryOrders(), []string{"REPOSITORY", "TAGS", "BLOBS", "ON DISK", "USES", "LAST USED", "PINNED"}, repositoryRow}
}

// Only the first order has more than one page.
func repositoryOrders() []string { return []string{"name", "bytes", "last_used", "uses"} }
func blobOrders() []string       { return []string{"digest", "size", "last_used", "uses"} }

func newLs() *cobra.Command {
	l := &listing{}
	cmd := l.flags(&cobra.Command{
		Use:   "ls [REPOSITORY]",
		Short: "List repositories, the tags of one, or blobs",
		Long: `ls lists the repositories that have content in a running mirror. With a repository
it lists the tags. With --blobs it lists blobs, of all repositories or of that one.

The state of a tag is for the next pull: fresh is served without asking the registry,
stale after asking it, and expired only if the registry answers. The sums by
repository are a few seconds old.`,
		Example: `  cachalot ls --sort bytes --limit 20
  cachalot ls alpine
  cachalot ls --blobs --sort last_used --min-size 100MiB
  cachalot ls --limit 0 --output json | jq -r '.repositories[].name'`,
		Args: func(cmd *cobra.Command, args []string) error {
			if err := cobra.MaximumNArgs(1)(cmd, args); err != nil {
				return err
			}
			return l.check(args)
		},
		RunE:              l.run(l.show),
		ValidArgsFunction: l.completes(repositories),
	})
	f := cmd.Flags()
	f.BoolVar(&l.blobs, "blobs", false, "list blobs, manifests among them")
	f.StringVar(&l.sort, "sort", "", "`ORDER`: "+strings.Join(repositoryOrders(), ", ")+"; of blobs: "+strings.Join(blobOrders(), ", "))
	f.IntVar(&l.limit, "limit", 100, "list at most `N`; 0: all")
	f.StringVar(&l.upstream, "upstream", "", "only of this `UPSTREAM`")
	f.StringVar(&l.minSize, "min-size", "", "blobs of this `SIZE` or larger, such as 100MiB")
	f.StringVar(&l.unusedSince, "unused-for", "", "blobs not used for this `DURATION`, such as 720h")
	_ = cmd.RegisterFlagCompletionFunc("sort", func(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		return l.kind(args).orders, cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveKeepOrder
	})
	l.completesFlag(cmd, "upstream", upstreams)
	return cmd
}

func (l *listing) check(args []string) error {
	k := l.kind(args)
	switch {
	case !l.blobs && (l.minSize != "" || l.unusedSince != ""):
		return errorf(Usage, "--min-size and --unused-for need --blobs")
	case l.upstream != "" && len(args) == 1:
		return errorf(Usage, "--upstream cannot be used with a repository, whose name has the upstream; remove one of the two")
	case l.sort != "" && k.orders == nil:
		return errorf(Usage, "--sort cannot be used for tags, which are listed by name; remove it")
	case l.sort != "" && !slices.Contains(k.orders, l.sort):
		return errorf(Usage, "--sort: %q is not known; write %s", l.sort, strings.Join(k.orders, ", "))
	case l.limit < 0:
		return errorf(Usage, "--limit: %d is below 0; write 0 for all", l.limit)
	case l.ranked(k) && (l.limit == 0 || l.limit > maxPage):
		return errorf(Usage, "--limit: --sort %s lists %d at most; to list all, write --sort %s", l.sort, maxPage, k.orders[0])
	}
	return nil
}

// ranked reports whether the order has no second page.
func (l *listing) ranked(k listed) bool { return l.sort != "" && l.sort != k.orders[0] }

func (l *listing) show(cmd *cobra.Command, args []string, c *client) error {
	k := l.kind(args)
	q := url.Values{}
	for name, value := range map[string]string{"sort": l.sort, "upstream": l.upstream, "min_size": l.minSize, "unused_for": l.unusedSince} {
		if value != "" {
			q.Set(name, value)
		}
	}
	if len(args) == 1 {
		q.Set("repository", args[0])
	}
	now := time.Now()
	var sums admin.RepositoriesAnswer // without its repositories
	var n int
	var more bool
	var err error
	if l.output.json() {
		out := jsonList{w: cmd.OutOrStdout(), key: k.path}
		if n, more, err = c.list(cmd.Context(), k.path, q, k.path, l.limit, out.page); err == nil {
			err = out.end()
		}
	} else {
		n, more, err = c.list(cmd.Context(), k.path, q, k.path, l.limit, k.pages(cmd.OutOrStdout(), now, &sums))
	}
	switch {
	case err != nil:
		return err
	case n == 0 && !sums.Taken.IsZero():
		cmd.PrintErrf("nothing of that was stored at the last count, %s\n", when(sums.Taken, now))
	case n == 0 && !l.output.json():
		cmd.PrintErrln("nothing of that is stored")
	case more:
		cmd.PrintErrf("the first %d; --limit 0 lists all\n", n)
	case l.ranked(k) && n == l.limit && n < maxPage:
		cmd.PrintErrf("the first %d by %s; --limit lists up to %d\n", n, l.sort, maxPage)
	}
	if sums.Truncated {
		cmd.PrintErrln("the mirror has more repositories than it counts; the others are not listed")
	}
	return nil
}

// pages returns a function that writes the rows of each page.
func (k listed) pages(w io.Writer, now time.Time, sums *admin.RepositoriesAnswer) func(map[string]json.RawMessage, []json.RawMessage) error {
	first := true
	return func(rest map[string]json.RawMessage, items []json.RawMessage) error {
		for name, into := range map[string]any{"truncated": &sums.Truncated, "taken": &sums.Taken} {
			if b, ok := rest[name]; ok {
				if err := json.Unmarshal(b, into); err != nil {
					return err
				}
			}
		}
		if len(items) == 0 {
			return nil
		}
		var columns []string
		if first {
			columns, first = k.columns, false
		}
		t := newTable(w, columns...)
		for _, item := range items {
			if err := k.row(t, item, now); err != nil {
				return err
			}
		}
		return t.end()
	}
}

func repositoryRow(t *table, item json.RawMessage, now time.Time) error {
	var r admin.RepositoryAnswer
	err := json.Unmarshal(item, &r)
	t.row(r.Name, humanize.Comma(r.Tags), humanize.Comma(r.Blobs), size(r.Bytes), humanize.Comma(r.Uses), when(r.LastUsed, now), yes(r.Pinned))
	return err
}

func tagRow(t *table, item json.RawMessage, now time.Time) error {
	var a admin.TagAnswer
	err := json.Unmarshal(item, &a)
	t.row(a.Tag, short(a.Digest), a.State, when(a.Checked, now), when(a.LastUsed, now), yes(a.Stored))
	return err
}

func blobRow(t *table, item json.RawMessage, now time.Time) error {
	var b admin.BlobAnswer
	err := json.Unmarshal(item, &b)
	t.row(b.Digest, b.Kind, size(b.Size), when(b.Stored, now), when(b.LastUsed, now), humanize.Comma(b.Uses), yes(b.Pinned), places(b))
	return err
}

// places returns the first repository of a blob, and how many others there are.
func places(b admin.BlobAnswer) string {
	switch {
	case len(b.Links) == 0:
		return "-"
	case b.MoreLinks:
		return fmt.Sprintf("%s and more than %d others", b.Links[0].Name, len(b.Links)-1)
	case len(b.Links) > 1:
		return fmt.Sprintf("%s and %d more", b.Links[0].Name, len(b.Links)-1)
	}
	return b.Links[0].Name
}
