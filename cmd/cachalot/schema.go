package main

import (
	"encoding/json"
	"fmt"

	"github.com/cachalot-registry/cachalot/cmd/cachalot/config"
	"github.com/spf13/cobra"
)

func newSchema() *cobra.Command {
	return &cobra.Command{
		Use:   "schema",
		Short: "Print the JSON Schema of configuration files",
		Long: `schema prints a JSON Schema (draft-07) for editors, and for the values of the Helm
chart: every key, and the form of its value. A file that passes may still be wrong;
"config check" checks more.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			text, err := json.MarshalIndent(config.Schema(), "", "  ")
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s\n", text)
			return err
		},
	}
}
