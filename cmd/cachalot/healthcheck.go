package main

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/spf13/cobra"

	"github.com/cachalot-registry/cachalot/cmd/cachalot/ops"
)

func newHealthcheck() *cobra.Command {
	var url string
	var wait time.Duration
	cmd := &cobra.Command{
		Use:   "healthcheck",
		Short: "Ask a running cachalot whether it is ready",
		Long: `healthcheck asks a running cachalot whether it is ready to serve. It exits with 0 if
so and with 1 if not. It is meant for a container's health check, and for scripts
that continue when it is ready.`,
		Example: `  cachalot healthcheck --wait 30s && docker pull alpine`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := backoff.Retry(cmd.Context(), func() (struct{}, error) {
				return struct{}{}, checkHealth(cmd, url)
			}, backoff.WithBackOff(backoff.NewConstantBackOff(200*time.Millisecond)),
				backoff.WithMaxElapsedTime(max(wait, 1))) // 0 is no limit
			if err != nil {
				return err
			}
			_, err = fmt.Fprintln(cmd.OutOrStdout(), "ready")
			return err
		},
	}
	cmd.Flags().StringVar(&url, "url", ops.DefaultAdmin+"/readyz", "the readiness check, on the address of admin.listen")
	cmd.Flags().DurationVar(&wait, "wait", 0, "retry for this long while it is not ready (default: ask once)")
	return cmd
}

func checkHealth(cmd *cobra.Command, url string) error {
	// No proxy, even if the environment has one: the process is on this host.
	client := &http.Client{Timeout: 3 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	req, err := http.NewRequestWithContext(cmd.Context(), http.MethodGet, url, http.NoBody)
	if err != nil {
		return backoff.Permanent(fmt.Errorf("not healthy: %w", err))
	}
	resp, err := client.Do(req)
	if err != nil {
		return fmt.Errorf("not healthy: %w; does cachalot run, with this admin.listen?", err)
	}
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusOK {
		return nil
	}
	answer, err := io.ReadAll(io.LimitReader(resp.Body, 1<<10))
	if err != nil {
		return fmt.Errorf("not healthy: read the answer: %w", err)
	}
	return fmt.Errorf("not ready: %s: %s", resp.Status, strings.TrimSpace(string(answer)))
}
