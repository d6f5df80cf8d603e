package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"time"

	"github.com/cachalot-registry/cachalot/storage"
	"github.com/dustin/go-humanize"
	"github.com/schollz/progressbar/v3"
	"github.com/spf13/cobra"
	"golang.org/x/term"
)

// unverifiedError: not every blob could be checked, or put away.
type unverifiedError struct{ err error }

func (e *unverifiedError) Error() string { return "verify: " + e.err.Error() }
func (e *unverifiedError) Unwrap() error { return e.err }

func newVerify() *cobra.Command {
	var file, output string
	var dryRun bool
	cmd := &cobra.Command{
		Use:   "verify",
		Short: "Check every blob in the cache",
		Long: `verify reads every blob in the cache from the disk and compares its digest. One
that is damaged is moved to the cache's folder quarantine/, and downloaded anew
when it is next asked for. --dry-run leaves it where it is.

A mirror may run on the cache meanwhile. Run verify as the mirror's user.

It exits with 0 when all blobs are right, with 1 when some are damaged, and with
2 when it could not check them all, or not move what is damaged.`,
		Example: `  cachalot verify --config cachalot.yml
  cachalot verify --dry-run --output json`,
		Args: func(cmd *cobra.Command, args []string) error {
			if output != "text" && output != "json" {
				return fmt.Errorf("--output: %q is not known; write text or json", output)
			}
			return cobra.NoArgs(cmd, args)
		},
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := loadConfig(file, os.LookupEnv)
			if err != nil {
				return err
			}
			s, err := cfg.storage()
			if err != nil {
				return &unverifiedError{err}
			}
			return verify(cmd.Context(), s.Path, dryRun, output, cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	f := cmd.Flags()
	f.StringVar(&file, "config", "", "configuration `FILE` that has the cache's folder; none means the defaults, as for serve")
	f.StringVar(&output, "output", "text", "`FORMAT` of what was found: text or json")
	f.BoolVar(&dryRun, "dry-run", false, "move nothing")
	return cmd
}

// damagedError is what verify found.
type damagedError struct{ damaged, blobs int }

func (e damagedError) Error() string {
	return fmt.Sprintf("verify: %d of %d blobs damaged", e.damaged, e.blobs)
}

func verify(ctx context.Context, path string, dryRun bool, output string, stdout, stderr io.Writer) error {
	progress, done := newProgress(stderr)
	found, err := storage.Verify(ctx, path, dryRun, progress)
	done()
	switch {
	case errors.Is(err, fs.ErrNotExist) && found.Blobs == 0:
		return &unverifiedError{fmt.Errorf("%w; name the mirror's configuration by --config", err)}
	case errors.Is(err, fs.ErrPermission):
		err = fmt.Errorf("%w; run it as the mirror's user", err)
	}
	show := showText
	if output == "json" {
		show = showJSON
	}
	if werr := show(stdout, path, dryRun, found); err == nil {
		err = werr
	}
	switch {
	case err != nil:
		return &unverifiedError{err}
	case len(found.Damaged) > 0:
		return damagedError{len(found.Damaged), found.Blobs}
	}
	return nil
}

// newProgress shows a bar where stderr is a terminal.
func newProgress(stderr io.Writer) (progress func(read, all int64), done func()) {
	f, ok := stderr.(*os.File)
	if !ok || !term.IsTerminal(int(f.Fd())) {
		return func(int64, int64) {}, func() {}
	}
	var bar *progressbar.ProgressBar
	return func(read, all int64) {
			if bar == nil {
				bar = progressbar.NewOptions64(all, progressbar.OptionSetWriter(stderr), progressbar.OptionSetDescription("checking"),
					progressbar.OptionShowBytes(true), progressbar.OptionUseIECUnits(true), progressbar.OptionThrottle(100*time.Millisecond), progressbar.OptionClearOnFinish())
			}
			_ = bar.Add64(read) // more than all, where blobs came meanwhile
		}, func() {
			if bar != nil {
				_ = bar.Finish() // it is only shown
			}
		}
}

func showText(w io.Writer, path string, dryRun bool, v storage.Verification) error {
	for _, d := range v.Damaged {
		where := "moved to " + d.Quarantine
		switch {
		case d.Quarantine == "" && dryRun:
			where = "left where it is"
		case d.Quarantine == "":
			where = "could not be moved"
		}
		if _, err := fmt.Fprintf(w, "%s: %s; %s\n", d.Digest, d.Reason, where); err != nil {
			return err
		}
	}
	_, err := fmt.Fprintf(w, "%s: %d blobs (%s) checked, %d damaged\n", path, v.Blobs, humanize.IBytes(uint64(v.Bytes)), len(v.Damaged))
	return err
}

func showJSON(w io.Writer, path string, dryRun bool, v storage.Verification) error {
	type damage struct {
		Digest     string `json:"digest"`
		Bytes      int64  `json:"bytes"`
		Reason     string `json:"reason"`
		Quarantine string `json:"quarantine,omitempty"`
	}
	damaged := make([]damage, 0, len(v.Damaged))
	for _, d := range v.Damaged {
		damaged = append(damaged, damage{string(d.Digest), d.Size, d.Reason, d.Quarantine})
	}
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(struct {
		Path    string   `json:"path"`
		DryRun  bool     `json:"dry_run"`
		Blobs   int      `json:"blobs"`
		Bytes   int64    `json:"bytes"`
		Damaged []damage `json:"damaged"`
	}{path, dryRun, v.Blobs, v.Bytes, damaged})
}
