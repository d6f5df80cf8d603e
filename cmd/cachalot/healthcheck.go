package main

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/spf13/cobra"

	"github.com/cachalot-registry/cachalot/cmd/cachalot/config"
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
that continue when it is ready. It asks at the address of admin.listen in the
configuration of the running cachalot, which it finds on Linux.`,
		Example: `  cachalot healthcheck --wait 30s && docker pull alpine`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := backoff.Retry(cmd.Context(), func() (struct{}, error) {
				at := url
				if at == "" {
					at = runningAdmin("/proc") + "/readyz"
				}
				return struct{}{}, checkHealth(cmd, at)
			}, backoff.WithBackOff(backoff.NewConstantBackOff(200*time.Millisecond)),
				backoff.WithMaxElapsedTime(max(wait, 1))) // 0 is no limit
			if err != nil {
				return err
			}
			_, err = fmt.Fprintln(cmd.OutOrStdout(), "ready")
			return err
		},
	}
	cmd.Flags().StringVar(&url, "url", "", "the readiness check; default: /readyz at admin.listen of the running cachalot, or "+ops.DefaultAdmin+"/readyz")
	cmd.Flags().DurationVar(&wait, "wait", 0, "retry for this long while it is not ready (default: ask once)")
	return cmd
}

// runningAdmin returns the URL of the admin listener of the cachalot that runs on this machine or
// in this container, by the configuration that its command line names. Without one it returns
// the default.
func runningAdmin(proc string) string {
	file, ok := runningConfig(proc)
	if !ok {
		return ops.DefaultAdmin
	}
	cfg, err := config.Load(file, os.LookupEnv)
	if err != nil {
		return ops.DefaultAdmin // such as after a change that is not in effect
	}
	host, port, err := net.SplitHostPort(cfg.Admin.Listen)
	if err != nil {
		return ops.DefaultAdmin
	}
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		host = "127.0.0.1"
		if ip != nil && ip.To4() == nil {
			host = "::1"
		}
	}
	return "http://" + net.JoinHostPort(host, port)
}

// runningConfig returns the configuration file of the first "cachalot serve" in a /proc; "": it
// has none.
func runningConfig(proc string) (file string, ok bool) {
	found, _ := filepath.Glob(filepath.Join(proc, "[0-9]*", "cmdline")) // none but on Linux
	pid := func(path string) int {
		n, _ := strconv.Atoi(filepath.Base(filepath.Dir(path)))
		return n
	}
	slices.SortFunc(found, func(a, b string) int { return pid(a) - pid(b) })
	for _, path := range found {
		line, err := os.ReadFile(path)
		if err != nil {
			continue // it has ended
		}
		args := strings.Split(string(bytes.TrimRight(line, "\x00")), "\x00")
		if len(args) < 2 || filepath.Base(args[0]) != "cachalot" || args[1] != "serve" {
			continue
		}
		for i, a := range args {
			if value, named := strings.CutPrefix(a, "--config="); named {
				return value, true
			}
			if a == "--config" && i+1 < len(args) {
				return args[i+1], true
			}
		}
		return "", true
	}
	return "", false
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
