package ops

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/cachalot-registry/cachalot/proxy/admin"
	"github.com/spf13/cobra"
	"golang.org/x/term"
)

// Control sequences of a terminal (ECMA-48, and xterm's alternate screen).
const (
	enterScreen = "\x1b[?1049h\x1b[?25l"
	leaveScreen = "\x1b[?25h\x1b[?1049l"
	toTop       = "\x1b[H"
	clearLine   = "\x1b[K"
	clearBelow  = "\x1b[J"
)

// minInterval leaves the mirror time for its clients.
const minInterval = 500 * time.Millisecond

func newTop() *cobra.Command {
	a := &asking{}
	var interval time.Duration
	once := false
	cmd := a.flags(&cobra.Command{
		Use:   "top",
		Short: "Show what the mirror does now",
		Long: `top shows what a running mirror does now: requests and bytes a second since the last
refresh, the state of its upstreams and the rest of their rate limits, and the
downloads in progress. Ctrl-C stops it.

If standard output is not a terminal, it shows one sample and exits. As JSON that is
an object of the API's stats, upstreams and fills.`,
		Example: `  cachalot top --interval 5s
  cachalot top --once --output json | jq .fills`,
		Args: func(cmd *cobra.Command, args []string) error {
			if interval < minInterval {
				return errorf(Usage, "--interval: %s is too short; write %s or longer", interval, minInterval)
			}
			return cobra.NoArgs(cmd, args)
		},
		RunE: a.run(func(cmd *cobra.Command, _ []string, c *client) error {
			out, terminal := cmd.OutOrStdout().(*os.File)
			terminal = terminal && term.IsTerminal(int(out.Fd()))
			if a.output.json() || once || !terminal {
				return lookOnce(cmd, c, a.output.json())
			}
			ctx, stop := interruptible(cmd.Context())
			defer stop()
			return watch(ctx, c, interval, out)
		}),
	})
	cmd.Flags().DurationVar(&interval, "interval", 2*time.Second, "refresh every `DURATION`")
	cmd.Flags().BoolVar(&once, "once", false, "show one sample and exit")
	return cmd
}

// looked is one sample of the mirror's state.
type looked struct {
	stats     admin.StatsAnswer
	upstreams map[string]admin.UpstreamAnswer
	fills     []admin.FillAnswer
	bodies    [3]json.RawMessage // of stats, upstreams and fills
}

func look(ctx context.Context, c *client) (l looked, err error) {
	var health admin.UpstreamsAnswer
	var fills admin.FillsAnswer
	for i, ask := range []struct {
		path string
		into any
	}{{"stats", &l.stats}, {"upstreams", &health}, {"fills", &fills}} {
		if l.bodies[i], err = c.get(ctx, ask.path, nil); err != nil {
			return l, err
		}
		if err := c.read(l.bodies[i], ask.into); err != nil {
			return l, err
		}
	}
	l.upstreams = map[string]admin.UpstreamAnswer{}
	for _, u := range health.Upstreams {
		l.upstreams[u.Name] = u
	}
	l.fills = fills.Fills
	return l, nil
}

func lookOnce(cmd *cobra.Command, c *client, asJSON bool) error {
	l, err := look(cmd.Context(), c)
	if err != nil {
		return err
	}
	if !asJSON {
		_, err := cmd.OutOrStdout().Write(frame(c.base.String(), l, nil, "", 0, 0))
		return err
	}
	body, err := json.Marshal(map[string]json.RawMessage{"stats": l.bodies[0], "upstreams": l.bodies[1], "fills": l.bodies[2]})
	if err != nil {
		return err
	}
	return showJSON(cmd.OutOrStdout(), body)
}

// watch draws a sample at each interval until ctx ends, and then restores the terminal.
func watch(ctx context.Context, c *client, interval time.Duration, out *os.File) error {
	now, err := look(ctx, c)
	if err != nil {
		return ended(err)
	}
	if _, err := io.WriteString(out, enterScreen); err != nil {
		return err
	}
	defer func() { _, _ = io.WriteString(out, leaveScreen) }() // fails only if the terminal is gone
	again := time.NewTicker(interval)
	defer again.Stop()
	var before *looked
	trouble := ""
	for {
		width, height, err := term.GetSize(int(out.Fd()))
		if err != nil || width <= 0 || height <= 0 {
			width, height = 80, 24
		}
		if err := draw(out, frame(c.base.String(), now, before, trouble, width, height)); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-again.C:
		}
		next, err := look(ctx, c)
		switch {
		case errors.Is(err, errInterrupted):
			return nil
		case err != nil:
			trouble = err.Error() // the mirror may answer again
		default:
			last := now
			now, before, trouble = next, &last, ""
		}
	}
}

func ended(err error) error {
	if errors.Is(err, errInterrupted) {
		return nil
	}
	return err
}

// draw overwrites the screen without clearing it first, so that it does not flicker.
func draw(w io.Writer, frame []byte) error {
	b := bytes.NewBufferString(toTop)
	for i, line := range bytes.Split(bytes.TrimSuffix(frame, []byte("\n")), []byte("\n")) {
		if i > 0 {
			b.WriteString("\r\n")
		}
		b.Write(line)
		b.WriteString(clearLine)
	}
	b.WriteString(clearBelow)
	_, err := w.Write(b.Bytes())
	return err
}

// perSecond returns how much a counter grew per second; "-" if there is no earlier sample, or
// the counter was reset.
func perSecond(now, before int64, took time.Duration, show func(int64) string) string {
	if took <= 0 || now < before {
		return "-"
	}
	return show(int64(float64(now-before)/took.Seconds()+0.5)) + "/s"
}

func number(n int64) string { return fmt.Sprint(n) }
