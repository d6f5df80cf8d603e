package main

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/cachalot-registry/cachalot/cmd/cachalot/config"
	"github.com/cachalot-registry/cachalot/proxy/clients"
	"github.com/spf13/cobra"
)

// shellName is the name on the command line of a part without a path.
const shellName = "shell"

func newClient() *cobra.Command {
	var o clientOptions
	var files []clients.File
	cmd := &cobra.Command{
		Use:   "client [NAME --mirror URL]",
		Short: "Print the configuration of a client",
		Long: `client prints the configuration of a client, or without a NAME the known clients.
Instructions go to standard error. If there are several parts, each begins with a
line "--- PATH" or "--- shell"; --file prints one part alone.

The configuration is for all registries of the mirror, and for all others too if the
client can express that in one entry. --registry chooses some, and may be repeated.`,
		Example: `  cachalot client docker --mirror http://cachalot.example:5000
  cachalot client containerd --mirror https://cachalot.example --ca /etc/ssl/cachalot.pem --registry quay.io
  cachalot client podman --mirror http://cachalot.example:5000 >/etc/containers/registries.conf.d/cachalot.conf`,
		// Checked in Args, so that an error counts as one of the command line (exit code 2).
		Args: func(_ *cobra.Command, args []string) (err error) {
			files, err = o.files(args)
			return err
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return listClients(cmd.OutOrStdout())
			}
			return printFiles(cmd.OutOrStdout(), cmd.ErrOrStderr(), files)
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.mirror, "mirror", "", "the mirror's `URL` for the client, without /v2")
	f.StringVar(&o.ca, "ca", "", "`FILE` on the client with the CA (PEM) of an https mirror; default: the system's CAs")
	f.StringArrayVar(&o.registries, "registry", nil, "a registry's `NAME`, such as quay.io; default: all")
	f.StringVar(&o.config, "config", "", "configuration `FILE` that has the registries; default: the well-known ones")
	f.StringVar(&o.file, "file", "", "print only the part with this `PATH`")
	return cmd
}

type clientOptions struct {
	mirror, ca, config, file string
	registries               []string
}

// files returns the parts that the command line names; without a client's name, none.
func (o clientOptions) files(args []string) ([]clients.File, error) {
	if len(args) == 0 {
		if o.mirror != "" {
			return nil, errors.New("no client named; write one, such as: cachalot client docker --mirror " + o.mirror)
		}
		return nil, nil
	}
	if len(args) > 1 {
		return nil, fmt.Errorf("one client at a time; %q is too much", args[1])
	}
	client, ok := clients.Named(args[0])
	if !ok {
		return nil, fmt.Errorf("unknown client %q; write one of %s", args[0], strings.Join(clientNames(), ", "))
	}
	s, err := o.settings()
	if err != nil {
		return nil, err
	}
	files, err := client.Config(s)
	if wrong, ok := errors.AsType[*clients.SettingError](err); ok {
		return nil, fmt.Errorf("--%s: %s", wrong.Setting, wrong.Reason)
	}
	if err != nil || o.file == "" {
		return files, err
	}
	var names []string
	var chosen []clients.File
	for _, f := range files {
		names = append(names, partName(f))
		if partName(f) == o.file {
			chosen = append(chosen, f)
		}
	}
	if chosen == nil {
		return nil, fmt.Errorf("--file: %s has no part %q; write one of %s", args[0], o.file, strings.Join(names, ", "))
	}
	return chosen, nil
}

func (o clientOptions) settings() (clients.Settings, error) {
	cfg, err := config.Load(o.config, os.LookupEnv)
	if err != nil {
		return clients.Settings{}, err
	}
	s := clients.Settings{Mirror: o.mirror, CAFile: o.ca, Registries: o.registries, Default: cfg.DefaultUpstream}
	if len(s.Registries) == 0 {
		s.Registries, s.All = slices.Sorted(maps.Keys(cfg.Upstreams)), true
	}
	if o.ca != "" {
		pem, err := os.ReadFile(o.ca)
		if err == nil { // it need not exist here: the client reads it
			s.CA = pem
		}
	}
	return s, nil
}

func clientNames() []string {
	var names []string
	for _, c := range clients.All() {
		names = append(names, c.Name)
	}
	return names
}

func listClients(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, c := range clients.All() {
		if _, err := fmt.Fprintf(t, "%s\t%s\n", c.Name, c.About); err != nil {
			return err
		}
	}
	return t.Flush()
}

// printFiles writes contents to stdout, so that one can be redirected into a file, and
// instructions to stderr.
func printFiles(stdout, stderr io.Writer, files []clients.File) error {
	for _, f := range files {
		if len(files) > 1 {
			if _, err := fmt.Fprintf(stdout, "--- %s\n", partName(f)); err != nil {
				return err
			}
		}
		if _, err := io.WriteString(stdout, f.Content); err != nil {
			return err
		}
	}
	for _, f := range files {
		if _, err := fmt.Fprintf(stderr, "%s: %s\n", partName(f), f.Use); err != nil {
			return err
		}
	}
	return nil
}

func partName(f clients.File) string {
	if f.Path == "" {
		return shellName
	}
	return f.Path
}
