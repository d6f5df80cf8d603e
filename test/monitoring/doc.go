// Package monitoring holds tests of the dashboard and the alerts in
// charts/cachalot/files: a real Prometheus scrapes a real cachalot while an hour
// or two of its life go by in one minute.
package monitoring
