package ops

import (
	"bufio"
	"cmp"
	"context"
	"fmt"
	"net/http"
	"os"
	"strings"

	"github.com/cachalot-registry/cachalot/proxy/admin"
	"github.com/spf13/cobra"
	"golang.org/x/term"
)

// purging has the flags of purge.
type purging struct {
	asking

	wanted admin.PurgeRequest
	yes    bool
}

func newPurge() *cobra.Command {
	p := &purging{}
	cmd := p.flags(&cobra.Command{
		Use:   "purge [IMAGE|REPOSITORY|DIGEST]",
		Short: "Remove an image, a repository, or unused content",
		Long: `purge removes content from a running mirror:
- an image with a tag or digest, and its content that no other tag of the repository uses
- a whole repository, named without tag and digest
- a blob, by its digest
- all content of an upstream
- unused content, of all, of an upstream or of a repository
Clients that are reading it get all of it, and the next pull fetches it again.

An image or a digest is removed at once. For the others purge prints what it would
remove, and asks. If standard input is not a terminal, give --yes or --dry-run.`,
		Example: `  cachalot purge alpine:3.22
  cachalot purge docker.io/library/alpine
  cachalot purge --unused-for 720h --dry-run
  cachalot purge --upstream ghcr.io --yes`,
		Args: func(cmd *cobra.Command, args []string) error {
			if err := cobra.MaximumNArgs(1)(cmd, args); err != nil {
				return err
			}
			return p.check(args)
		},
		RunE:              p.run(p.purge),
		ValidArgsFunction: p.completes(images),
	})
	f := cmd.Flags()
	f.StringVar(&p.wanted.Upstream, "upstream", "", "content of this `UPSTREAM`")
	f.StringVar(&p.wanted.UnusedFor, "unused-for", "", "content not used for this `DURATION`, such as 720h")
	f.BoolVar(&p.wanted.Pinned, "pinned", false, "pinned content too")
	f.BoolVar(&p.wanted.DryRun, "dry-run", false, "only list what would be removed")
	f.BoolVarP(&p.yes, "yes", "y", false, "do not ask")
	p.completesFlag(cmd, "upstream", upstreams)
	return cmd
}

// check sets and checks wanted, with the argument.
func (p *purging) check(args []string) error {
	w := &p.wanted
	if len(args) == 0 {
		if w.Upstream == "" && w.UnusedFor == "" {
			return errorf(Usage, "nothing to remove; name an image, a repository or a digest, or give --upstream or --unused-for")
		}
		return nil
	}
	name := args[0]
	_, last, _ := cutLast(name, "/")
	switch {
	case w.Upstream != "":
		return errorf(Usage, "--upstream removes all of the upstream; remove %s, or --upstream", name)
	case isDigest(name):
		w.Digest = name
	case strings.ContainsAny(last, ":@"):
		w.Image = name
	default:
		w.Repository = name
	}
	if w.UnusedFor != "" && w.Repository == "" {
		return errorf(Usage, "--unused-for is for a repository, an upstream or all; remove it, because %s is removed whether used or not", name)
	}
	return nil
}

func cutLast(s, sep string) (before, after string, found bool) {
	if i := strings.LastIndex(s, sep); i >= 0 {
		return s[:i], s[i+len(sep):], true
	}
	return "", s, false
}

// large reports whether more than one image or digest is removed.
func (p *purging) large() bool { return p.wanted.Image == "" && p.wanted.Digest == "" }

func (p *purging) purge(cmd *cobra.Command, _ []string, c *client) error {
	if p.large() && !p.yes && !p.wanted.DryRun {
		if !isTerminal(cmd) {
			hint := ""
			if r := p.wanted.Repository; r != "" {
				hint = fmt.Sprintf(". For one image write its tag, as in %s:latest", r)
			}
			return errorf(Usage, "this removes %s and needs a confirmation: give --yes, or --dry-run to list it%s", p.what(), hint)
		}
		if goOn, err := p.ask(cmd, c); err != nil || !goOn {
			return err
		}
	}
	body, answer, err := p.send(cmd.Context(), c, p.wanted)
	if err != nil {
		return err
	}
	if p.output.json() {
		return showJSON(cmd.OutOrStdout(), body)
	}
	if answer.DryRun && len(answer.Items) > 0 {
		t := newTable(cmd.OutOrStdout(), "DIGEST", "WOULD BE", "ON DISK")
		for _, item := range answer.Items {
			t.row(item.Digest, became(item.Result), size(item.Bytes))
		}
		if err := t.end(); err != nil {
			return err
		}
		if answer.Truncated {
			cmd.PrintErrf("and others: only the first %d are listed\n", len(answer.Items))
		}
	}
	return say(cmd, "%s", summary(answer))
}

func (p *purging) send(ctx context.Context, c *client, wanted admin.PurgeRequest) (body []byte, answer admin.PurgeAnswer, err error) {
	if body, err = c.send(ctx, http.MethodPost, "purge", nil, wanted); err == nil {
		err = c.read(body, &answer)
	}
	return body, answer, err
}

// what says in words what is to be removed.
func (p *purging) what() string {
	what := cmp.Or(p.wanted.Repository, p.wanted.Upstream, "the mirror")
	switch {
	case p.wanted.UnusedFor != "":
		what = "content of " + what + " not used for " + p.wanted.UnusedFor
	case p.wanted.Repository != "":
		what = "the repository " + what + " with all its tags"
	default:
		what = "all of " + what
	}
	return what
}

// ask shows what would be removed, and asks for a confirmation.
func (p *purging) ask(cmd *cobra.Command, c *client) (bool, error) {
	wanted := p.wanted
	wanted.DryRun = true
	_, answer, err := p.send(cmd.Context(), c, wanted)
	if err != nil {
		return false, err
	}
	if answer.Tags+answer.Blobs+answer.Unlinked == 0 {
		return false, say(cmd, "%s", summary(answer))
	}
	cmd.PrintErrf("%s: %s\nRemove it? [y/N] ", safe(p.what()), summary(answer))
	text, err := bufio.NewReader(cmd.InOrStdin()).ReadString('\n')
	if text = strings.ToLower(strings.TrimSpace(text)); text == "y" || text == "yes" {
		return true, nil
	}
	if err != nil {
		cmd.PrintErrln()
	}
	return false, errorf(Failed, "nothing was removed")
}

// isTerminal reports whether a confirmation can be asked for.
func isTerminal(cmd *cobra.Command) bool {
	f, ok := cmd.InOrStdin().(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// became returns the API's result for a blob, in words.
func became(result string) string {
	switch result {
	case "unlinked":
		return "not removed: used by other repositories"
	case "pinned":
		return "not removed: pinned"
	case "busy":
		return "not removed: busy"
	}
	return result
}

// summary says what was removed, or would be.
func summary(a admin.PurgeAnswer) string {
	text := "removed"
	if a.DryRun {
		text = "would remove"
	}
	text += fmt.Sprintf(" %s and %s (%s)", things(a.Tags, "tag"), things(a.Blobs, "blob"), size(a.Bytes))
	for _, stays := range []struct {
		n   int
		why string
	}{{a.Unlinked, "used by other repositories"}, {a.Pinned, "pinned"}, {a.Busy, "being downloaded"}} {
		if stays.n > 0 {
			text += fmt.Sprintf("; %s not removed: %s", things(stays.n, "blob"), stays.why)
		}
	}
	return text
}
