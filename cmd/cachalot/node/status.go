package node

import (
	"net/http"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// states are the values of the label state; the machine is in one of them.
const (
	stateReady      = "ready"
	stateMirror     = "mirror_down"      // the mirror does not answer
	stateFiles      = "file_not_changed" // a file cannot have the mirror
	stateContainerd = "folder_not_read"  // containerd does not read the files, or cannot be asked
)

// state returns the label's value.
func (s Status) state() string {
	switch {
	case s.Containerd != nil:
		return stateContainerd
	case s.Mirror != nil:
		return stateMirror
	case s.Files != nil:
		return stateFiles
	}
	return stateReady
}

// Handler serves /readyz, whose body says why the machine does not pull through the mirror, and
// /metrics.
func (n *Node) Handler() http.Handler {
	reg := prometheus.NewRegistry()
	for _, state := range []string{stateReady, stateMirror, stateFiles, stateContainerd} {
		promauto.With(reg).NewGaugeFunc(prometheus.GaugeOpts{
			Namespace: "cachalot", Subsystem: "node", Name: "state", ConstLabels: prometheus.Labels{"state": state},
			Help: "1 for the state of this machine: ready (it pulls through the mirror), mirror_down, file_not_changed or folder_not_read; 0 for others.",
		}, func() float64 {
			if n.Status().state() == state {
				return 1
			}
			return 0
		})
	}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(reg, promhttp.HandlerOpts{MaxRequestsInFlight: 4}))
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if err := n.Status().Err(); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		_, _ = w.Write([]byte("ready\n")) // a probe that has left
	})
	return mux
}
