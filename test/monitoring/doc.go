// Package monitoring tests the dashboard and the alerts in charts/cachalot/files: a real
// Prometheus scrapes a real cachalot, and one minute stands for an hour or two.
package monitoring
