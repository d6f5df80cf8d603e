package ops

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/cachalot-registry/cachalot/proxy/admin"
	"github.com/spf13/cobra"
)

// maxBatch bounds the names of one request, in bytes; the API takes twice as much.
const maxBatch = 256 << 10

// warming has the flags of warm, and its progress.
type warming struct {
	asking

	file      string
	platforms []string

	cmd  *cobra.Command
	bar  *Bar
	all  int             // images
	past admin.WarmEvent // of requests that have ended, and of images that were refused
	now  admin.WarmEvent // of the request that runs
}

func newWarm() *cobra.Command {
	w := &warming{}
	cmd := w.flags(&cobra.Command{
		Use:   "warm [IMAGE...]",
		Short: "Fetch images in advance",
		Long: `warm makes a running mirror fetch images as a client's pull would, and prints a line
for each. Content that is stored, or being downloaded for a client, is not fetched
again. It counts against the registry's rate limit, as a pull does.

Images are named by arguments, or in a file: one name a line, with # before comments;
the output of kubectl get -o json, of pods or of their Deployments and the like; or a
compose file. Services without an image, or with a variable in its name, are skipped.

Ctrl-C stops the command; downloads that have begun finish. It exits with 1 if an
image could not be fetched.`,
		Example: `  cachalot warm alpine:3.22 ghcr.io/acme/app:v1 --platform linux/amd64,linux/arm64
  cachalot warm --file images.txt
  kubectl get pods --all-namespaces --output json | cachalot warm --file -
  cachalot warm --file docker-compose.yml --output json`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 && w.file == "" {
				return errorf(Usage, "name an image, or a file of names with --file; - is standard input")
			}
			return nil
		},
		RunE:              w.run(w.warm),
		ValidArgsFunction: w.completesAll(images),
	})
	f := cmd.Flags()
	f.StringVarP(&w.file, "file", "f", "", "`FILE` with names of images; -: standard input")
	f.StringSliceVar(&w.platforms, "platform", nil, "`PLATFORM` such as linux/arm64, or all; may be repeated; default: linux with the mirror's architecture")
	complete(cmd, "platform", "linux/amd64", "linux/arm64", "linux/arm/v7", "all")
	return cmd
}

// names returns the names of the arguments and the file, each once.
func (w *warming) names(cmd *cobra.Command, args []string) ([]string, error) {
	names := args
	if w.file != "" {
		in, from := cmd.InOrStdin(), "standard input"
		if w.file != "-" {
			from = w.file
			f, err := os.Open(w.file)
			if err != nil {
				return nil, errorf(Usage, "--file: %w", err)
			}
			defer func() { _ = f.Close() }() // only read from
			in = f
		}
		more, notes, err := readNames(in, from)
		if err != nil {
			return nil, err
		}
		for _, note := range notes {
			cmd.PrintErrln(note)
		}
		if names = append(names, more...); len(names) == 0 {
			return nil, errorf(Usage, "no images in %s", from)
		}
	}
	seen := map[string]bool{}
	return slices.DeleteFunc(slices.Clone(names), func(name string) bool {
		again := seen[name]
		seen[name] = true
		return again
	}), nil
}

func (w *warming) warm(cmd *cobra.Command, args []string, c *client) error {
	names, err := w.names(cmd, args)
	if err != nil {
		return err
	}
	ctx, stop := interruptible(cmd.Context())
	defer stop()
	w.cmd, w.bar, w.all = cmd, NewBar(cmd.ErrOrStderr()), len(names)
	w.bar.uneven = true // stored content is done at once
	asked := false
	for len(names) > 0 && err == nil {
		var batch []string
		batch, names = firstBatch(names)
		for len(batch) > 0 {
			at, problem := refusedImage(w.request(ctx, c, batch), len(batch))
			if at < 0 {
				asked = asked || problem == nil
				err = problem
				break
			}
			// The API refuses the whole batch for one wrong name: send it without that.
			if err = w.refused(batch[at], problem); err != nil {
				break
			}
			batch = slices.Delete(batch, at, at+1)
		}
	}
	w.bar.Done()
	sum := w.sum()
	if err != nil {
		if errors.Is(err, errInterrupted) {
			return errorf(Failed, "interrupted with %d of %s stored, in all %s of %s; downloads that have begun finish",
				sum.ImagesDone-sum.ImagesFailed, things(w.all, "image"), size(sum.Done), size(sum.Size))
		}
		if sum.ImagesDone > 0 {
			cmd.PrintErrln(w.progress(sum))
		}
		return err
	}
	if !w.output.json() {
		if err := say(cmd, "%s", w.progress(sum)); err != nil {
			return err
		}
	}
	switch {
	case !asked:
		return errorf(Usage, "the mirror can fetch none of these names")
	case sum.ImagesFailed > 0:
		return errorf(Failed, "%d of %s could not be fetched", sum.ImagesFailed, things(w.all, "image"))
	}
	return nil
}

// firstBatch returns the names of the next request, and the others.
func firstBatch(names []string) (batch, rest []string) {
	n, bytes := 0, 0
	for n < len(names) && n < admin.MaxImages && (n == 0 || bytes+len(names[n]) < maxBatch) {
		bytes += len(names[n]) + len(`"",`)
		n++
	}
	return slices.Clone(names[:n]), names[n:]
}

// refusedImage returns the index of the image whose name the API refused, and the reason; -1:
// no name was refused.
func refusedImage(err error, of int) (at int, _ error) {
	p, ok := errors.AsType[*admin.Problem](err)
	if !ok {
		return -1, err
	}
	text, ok := strings.CutPrefix(p.Parameter, "images[")
	if at, nerr := strconv.Atoi(strings.TrimSuffix(text, "]")); ok && nerr == nil && at >= 0 && at < of {
		return at, errors.New(strings.TrimPrefix(p.Detail, p.Parameter+": "))
	}
	return -1, err
}

// refused counts and prints an image whose name the API refused.
func (w *warming) refused(name string, why error) error {
	e := admin.WarmEvent{Event: "image", Image: name, Error: why.Error(), Images: 1, ImagesDone: 1, ImagesFailed: 1}
	w.past.ImagesDone++
	w.past.ImagesFailed++
	if !w.output.json() {
		return w.image(e)
	}
	line, err := json.Marshal(e)
	if err != nil {
		return err
	}
	return w.line(line)
}

func (w *warming) line(line []byte) error {
	_, err := w.cmd.OutOrStdout().Write(append(safeJSON(line), '\n'))
	return err
}

// request warms one batch.
func (w *warming) request(ctx context.Context, c *client, batch []string) error {
	ended := false
	err := c.stream(ctx, "warm", admin.WarmRequest{Images: batch, Platforms: w.platforms}, func(line []byte) error {
		var e admin.WarmEvent
		if err := c.read(line, &e); err != nil {
			return err
		}
		if w.output.json() {
			w.bar.Clear()
			if err := w.line(line); err != nil {
				return err
			}
		}
		switch e.Event {
		case "image":
			w.now.ImagesDone++
			if e.Error != "" {
				w.now.ImagesFailed++
			}
			if !w.output.json() {
				return w.image(e)
			}
			return nil
		case "end":
			ended = true
			if e.Error != "" {
				return errorf(Failed, "the mirror stopped: %s", e.Error)
			}
		}
		w.now = e
		sum := w.sum()
		w.bar.At(sum.Done, sum.Size, fmt.Sprintf("%d of %s, %s of %s", sum.ImagesDone, things(w.all, "image"), size(sum.Done), size(sum.Size)))
		return nil
	})
	if err == nil && !ended {
		err = errorf(Failed, "the answer of %s ended early", c.base)
	}
	if err == nil {
		w.past, w.now = w.sum(), admin.WarmEvent{}
	}
	return err
}

// image prints the result for one image.
func (w *warming) image(e admin.WarmEvent) error {
	w.bar.Clear()
	if e.Error != "" {
		return say(w.cmd, "%s: failed: %s", e.Image, e.Error)
	}
	of := ""
	if len(e.Platforms) > 0 {
		of = " for " + strings.Join(e.Platforms, ", ")
	}
	return say(w.cmd, "%s: %s%s, %s, of which %s fetched", e.Image, short(e.Digest), of, size(e.Size), size(e.Fetched))
}

// sum adds up all requests so far.
func (w *warming) sum() admin.WarmEvent {
	return admin.WarmEvent{
		ImagesDone: w.past.ImagesDone + w.now.ImagesDone, ImagesFailed: w.past.ImagesFailed + w.now.ImagesFailed,
		Size: w.past.Size + w.now.Size, Done: w.past.Done + w.now.Done, Fetched: w.past.Fetched + w.now.Fetched,
	}
}

func (w *warming) progress(sum admin.WarmEvent) string {
	text := fmt.Sprintf("%d of %s stored", sum.ImagesDone-sum.ImagesFailed, things(w.all, "image"))
	if sum.ImagesFailed > 0 {
		text += fmt.Sprintf(", %d failed", sum.ImagesFailed)
	}
	return fmt.Sprintf("%s; %s, of which %s fetched", text, size(sum.Done), size(sum.Fetched))
}
