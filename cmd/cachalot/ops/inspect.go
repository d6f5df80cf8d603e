package ops

import (
	"fmt"
	"io"
	"net/url"
	"strings"
	"time"

	"github.com/cachalot-registry/cachalot/proxy/admin"
	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"
)

func newInspect() *cobra.Command {
	a := &asking{}
	return a.flags(&cobra.Command{
		Use:   "inspect IMAGE|DIGEST",
		Short: "Show which parts of an image, or a blob, are stored",
		Long: `inspect shows the platforms and layers of an image, and which of them a running
mirror stores. For a digest it shows the blob, and the repositories it was seen in.
Nothing is fetched: the layers of a manifest that is not stored are not known.`,
		Example: `  cachalot inspect alpine:3.22
  cachalot inspect ghcr.io/acme/app:v1 --output json | jq '.manifests[] | select(.complete) | .platform'`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completes(images),
		RunE: a.run(func(cmd *cobra.Command, args []string, c *client) error {
			path, q := "image", url.Values{"name": args}
			if isDigest(args[0]) {
				path, q = "blob", url.Values{"digest": args}
			}
			body, err := c.get(cmd.Context(), path, q)
			if err != nil {
				return err
			}
			out := cmd.OutOrStdout()
			if a.output.json() {
				return showJSON(out, body)
			}
			if path == "blob" {
				var b admin.BlobAnswer
				if err := c.read(body, &b); err != nil {
					return err
				}
				return showBlob(out, b, time.Now())
			}
			var i admin.ImageAnswer
			if err := c.read(body, &i); err != nil {
				return err
			}
			return showImage(out, i, time.Now())
		}),
	})
}

func pinnedBy(by []string) string {
	if len(by) == 0 {
		return "no"
	}
	return "by " + strings.Join(by, ", ")
}

func showBlob(w io.Writer, b admin.BlobAnswer, now time.Time) error {
	t := newTable(w)
	t.row("Digest", b.Digest)
	t.row("Kind", b.Kind)
	t.row("Size", fmt.Sprintf("%s; %s on disk", size(b.Size), size(b.Bytes)))
	t.row("Stored", when(b.Stored, now))
	again := ""
	if b.UsedAgain {
		again = "; used repeatedly, so it stays longer"
	}
	t.row("Used", fmt.Sprintf("%s, %s%s", things(b.Uses, "time"), when(b.LastUsed, now), again))
	if !b.Expires.IsZero() && b.Expires.Unix() > 0 {
		t.row("Expires", when(b.Expires, now)+", unless it is used or pinned")
	}
	if b.Unwanted {
		t.row("Orphaned", "no tag refers to it, so it is evicted first")
	}
	t.row("Pinned", pinnedBy(b.PinnedBy))
	if b.Filling {
		t.row("Download", "running")
	}
	if err := t.end(); err != nil || len(b.Links) == 0 {
		return err
	}
	if _, err := fmt.Fprintln(w); err != nil {
		return err
	}
	t = newTable(w, "SEEN IN", "AS", "MEDIA TYPE")
	for _, l := range b.Links {
		t.row(l.Name, l.Kind, l.MediaType)
	}
	if b.MoreLinks {
		t.row("and others")
	}
	return t.end()
}

func showImage(w io.Writer, i admin.ImageAnswer, now time.Time) error {
	t := newTable(w)
	t.row("Image", i.Image)
	t.row("Digest", i.Digest)
	t.row("Media type", orDash(i.MediaType))
	if i.State != "" {
		t.row("Checked", fmt.Sprintf("%s; %s", when(i.Checked, now), i.State))
	}
	t.row("Pinned", pinnedBy(i.PinnedBy))
	whole := 0
	for _, m := range i.Manifests {
		if m.Complete {
			whole++
		}
	}
	t.row("Stored", fmt.Sprintf("%s; %d of %s complete", size(i.StoredSize), whole, things(len(i.Manifests), "manifest")))
	if err := t.end(); err != nil {
		return err
	}
	if _, err := fmt.Fprintln(w); err != nil {
		return err
	}
	t = newTable(w, "PLATFORM", "STORED", "BYTES", "LAYERS", "DIGEST")
	for _, m := range i.Manifests {
		state, layers := "no", "-"
		if m.Stored {
			here := 0
			for _, l := range m.Layers {
				if l.Stored {
					here++
				}
			}
			state, layers = "in part", fmt.Sprintf("%d of %d", here, len(m.Layers))
		}
		of := size(m.StoredSize)
		if m.Stored {
			of += " of " + size(m.Size)
		}
		if m.Complete {
			state = "complete"
		}
		t.row(platform(m), state, of, layers, m.Digest)
	}
	if i.Truncated {
		t.row("and others")
	}
	if err := t.end(); err != nil {
		return err
	}
	return showLayers(w, i.Manifests)
}

// platform returns a manifest's platform or, if it has none, its artifact type.
func platform(m admin.ManifestAnswer) string {
	switch {
	case m.Platform != "":
		return m.Platform
	case m.ArtifactType != "":
		return m.ArtifactType
	}
	return "-"
}

func showLayers(w io.Writer, manifests []admin.ManifestAnswer) error {
	known := false
	for _, m := range manifests {
		known = known || m.Config != nil || len(m.Layers) > 0
	}
	if !known {
		return nil
	}
	if _, err := fmt.Fprintln(w); err != nil {
		return err
	}
	t := newTable(w, "LAYER OF", "STORED", "SIZE", "DIGEST", "MEDIA TYPE")
	for _, m := range manifests {
		layers := m.Layers
		if m.Config != nil {
			layers = append([]admin.LayerAnswer{*m.Config}, layers...)
		}
		for _, l := range layers {
			t.row(platform(m), yes(l.Stored), humanize.IBytes(uint64(max(l.Size, 0))), l.Digest, l.MediaType)
		}
	}
	return t.end()
}
