package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"github.com/cachalot-registry/cachalot/cmd/cachalot/config"
	"github.com/dustin/go-humanize"
	"github.com/opencontainers/go-digest"
	"github.com/spf13/cobra"

	"github.com/cachalot-registry/cachalot/cmd/cachalot/ops"
	"github.com/cachalot-registry/cachalot/storage"
)

// unverifiedError: not every blob could be checked, or moved to quarantine.
type unverifiedError struct{ err error }

func (e *unverifiedError) Error() string { return "verify: " + e.err.Error() }
func (e *unverifiedError) Unwrap() error { return e.err }

func newVerify() *cobra.Command {
	var file, output string
	var dryRun bool
	var running ops.Mirror
	cmd := &cobra.Command{
		Use:   "verify",
		Short: "Check every blob in the cache",
		Long: `verify reads every blob in the cache from the disk and compares its digest. A damaged
blob is moved to the cache's folder quarantine/, and downloaded again at the next
request. --dry-run does not move it.

verify can run beside a running mirror, as its user. With --admin the running mirror
checks its own cache. Ctrl-C stops the check.

It exits with 0 when all blobs are right, with 1 when some are damaged, and with 2
when it could not check all blobs or could not move a damaged one.`,
		Example: `  cachalot verify --config cachalot.yml
  cachalot verify --dry-run --output json
  cachalot verify --admin http://127.0.0.1:5001`,
		Args: func(cmd *cobra.Command, args []string) error {
			switch {
			case running.TokenFile != "" && running.URL == "":
				return errors.New("--token-file is for --admin")
			case running.URL != "" && file != "":
				return errors.New("--config is for a cache on disk, --admin for a running mirror; keep one of the two")
			}
			if output != "text" && output != "json" {
				return fmt.Errorf("--output: %q is not known; write text or json", output)
			}
			return cobra.NoArgs(cmd, args)
		},
		RunE: func(cmd *cobra.Command, _ []string) error {
			if running.URL != "" {
				return verifyRunning(cmd, &running, dryRun, output)
			}
			cfg, err := config.Load(file, os.LookupEnv)
			if err != nil {
				return err
			}
			s, err := cfg.StorageConfig()
			if err != nil {
				return &unverifiedError{err}
			}
			return verify(cmd.Context(), s.Path, dryRun, output, cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	f := cmd.Flags()
	f.StringVar(&file, "config", "", "configuration `FILE` that has the cache's folder; default: built-in values, as for serve")
	f.StringVarP(&output, "output", "o", "text", "`FORMAT` of the result: text or json")
	f.BoolVar(&dryRun, "dry-run", false, "move nothing")
	running.Flags(f)
	// Without --admin, verify reads a folder, even if CACHALOT_ADMIN is set.
	f.Lookup("admin").Usage = "`URL` of the admin.listen of a running mirror, which checks its own cache"
	return cmd
}

// damagedError: verify found damaged blobs.
type damagedError struct{ damaged, blobs int }

func (e damagedError) Error() string {
	return fmt.Sprintf("verify: %d of %d blobs damaged", e.damaged, e.blobs)
}

func verify(ctx context.Context, path string, dryRun bool, output string, stdout, stderr io.Writer) error {
	bar := ops.NewBar(stderr)
	var done int64
	found, err := storage.Verify(ctx, path, dryRun, func(read, all int64) {
		done += read
		bar.At(done, all, "checking")
	})
	bar.Done()
	switch {
	case errors.Is(err, fs.ErrNotExist) && found.Blobs == 0:
		return &unverifiedError{fmt.Errorf("%w; name the mirror's configuration by --config", err)}
	case errors.Is(err, fs.ErrPermission):
		err = fmt.Errorf("%w; run it as the mirror's user", err)
	}
	return verified(stdout, path, dryRun, output, found, err)
}

// verifyRunning makes a running mirror check its blobs.
func verifyRunning(cmd *cobra.Command, m *ops.Mirror, dryRun bool, output string) error {
	bar := ops.NewBar(cmd.ErrOrStderr())
	at, event, err := m.Verify(cmd.Context(), dryRun, func(done, all int64) { bar.At(done, all, "checking") })
	bar.Done()
	if event.Blobs == nil {
		if refused, ok := errors.AsType[*ops.Error](err); ok && refused.Code != ops.Failed {
			return err
		}
		return &unverifiedError{err}
	}
	found := storage.Verification{Blobs: *event.Blobs, Bytes: event.Bytes}
	for _, d := range event.Damaged {
		found.Damaged = append(found.Damaged, storage.Damage{Digest: digest.Digest(d.Digest), Size: d.Size, Reason: d.Reason, Quarantine: d.Quarantine})
	}
	return verified(cmd.OutOrStdout(), at, dryRun, output, found, err)
}

// verified prints the result; err is the reason if it is incomplete.
func verified(stdout io.Writer, at string, dryRun bool, output string, found storage.Verification, err error) error {
	show := showText
	if output == "json" {
		show = showJSON
	}
	if werr := show(stdout, at, dryRun, found); err == nil {
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
