package ops

import (
	"net/http"
	"net/url"
	"time"

	"github.com/cachalot-registry/cachalot/proxy/admin"
	"github.com/spf13/cobra"
)

func newPin() *cobra.Command {
	a := &asking{}
	comment := ""
	cmd := a.flags(&cobra.Command{
		Use:   "pin [PATTERN]",
		Short: "Pin repositories, or list pins",
		Long: `pin lists the pins of a running mirror, from its configuration's rules and from this
command. Pinned content is never evicted. With a repository, or a pattern of
repositories as in rules, it pins all content pulled through them, now and later,
until unpin, also after restarts.`,
		Example: `  cachalot pin
  cachalot pin alpine --comment "every build"
  cachalot pin 'ghcr.io/acme/**'`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 && cmd.Flags().Changed("comment") {
				return errorf(Usage, "--comment is for a new pin; write its repository or pattern too")
			}
			return cobra.MaximumNArgs(1)(cmd, args)
		},
		ValidArgsFunction: a.completes(repositories),
		RunE: a.run(func(cmd *cobra.Command, args []string, c *client) error {
			if len(args) == 0 {
				return a.pins(cmd, c)
			}
			body, err := c.send(cmd.Context(), http.MethodPost, "pins", nil, admin.PinRequest{Match: args[0], Comment: comment})
			if err != nil {
				return err
			}
			if a.output.json() {
				return showJSON(cmd.OutOrStdout(), body)
			}
			var pin admin.PinAnswer
			if err := c.read(body, &pin); err != nil {
				return err
			}
			return say(cmd, "%s is pinned", pin.Match)
		}),
	})
	cmd.Flags().StringVar(&comment, "comment", "", "`TEXT` that says why")
	return cmd
}

func (a *asking) pins(cmd *cobra.Command, c *client) error {
	body, err := c.get(cmd.Context(), "pins", nil)
	if err != nil {
		return err
	}
	if a.output.json() {
		return showJSON(cmd.OutOrStdout(), body)
	}
	var answer admin.PinsAnswer
	if err := c.read(body, &answer); err != nil {
		return err
	}
	if len(answer.Pins) == 0 {
		cmd.PrintErrln("nothing is pinned")
		return nil
	}
	now := time.Now()
	t := newTable(cmd.OutOrStdout(), "PATTERN", "BY", "SINCE", "COMMENT")
	for _, p := range answer.Pins {
		by := p.Source
		if by == "api" {
			by = "pin"
		}
		t.row(p.Match, by, when(p.Created, now), p.Comment)
	}
	return t.end()
}

func newUnpin() *cobra.Command {
	a := &asking{}
	return a.flags(&cobra.Command{
		Use:   "unpin PATTERN",
		Short: "Remove a pin",
		Long: `unpin removes a pin that the command pin added to a running mirror: the repository or
pattern, as pin lists it. Pins from rules are removed in the configuration.`,
		Example: `  cachalot unpin 'ghcr.io/acme/**'`,
		Args:    cobra.ExactArgs(1),
		ValidArgsFunction: a.completes(func(ask *asker, _ string) []string {
			return ask.pins()
		}),
		RunE: a.run(func(cmd *cobra.Command, args []string, c *client) error {
			if _, err := c.send(cmd.Context(), http.MethodDelete, "pins", url.Values{"match": args}, nil); err != nil {
				return err
			}
			if a.output.json() {
				return nil // the API's response has no body
			}
			return say(cmd, "%s is no longer pinned", args[0])
		}),
	})
}
