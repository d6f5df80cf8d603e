package node

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// TestHandler: /readyz says why the machine does not pull through the mirror, the first reason
// first, and /metrics has one state.
func TestHandler(t *testing.T) {
	t.Parallel()
	err := func(s string) error { return errors.New(s) }
	for name, tc := range map[string]struct {
		status      *Status
		state, text string
	}{
		"before the first request": {nil, stateFiles, "not been asked yet"},
		"all is well":              {&Status{}, stateReady, "ready"},
		"the mirror is down":       {&Status{Mirror: err("refused"), Files: err("missing")}, stateMirror, "refused"},
		"a file is a link":         {&Status{Files: err("it is a link")}, stateFiles, "it is a link"},
		"containerd":               {&Status{Containerd: err("not read"), Mirror: err("refused"), Files: err("missing")}, stateContainerd, "not read"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n, _ := newNode(t, Config{Dir: t.TempDir()})
			if tc.status != nil {
				n.status.Store(tc.status)
			}
			get := func(path string) *httptest.ResponseRecorder {
				w := httptest.NewRecorder()
				n.Handler().ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, path, http.NoBody))
				return w
			}
			ready := get("/readyz")
			if (ready.Code == http.StatusOK) != (tc.state == stateReady) || !strings.Contains(ready.Body.String(), tc.text) {
				t.Errorf("/readyz: %d %s", ready.Code, ready.Body)
			}
			text := get("/metrics").Body.String()
			if !strings.Contains(text, `cachalot_node_state{state="`+tc.state+`"} 1`) || strings.Count(text, "} 1\n") != 1 || strings.Count(text, "} 0\n") != 3 {
				t.Errorf("/metrics:\n%s", text)
			}
		})
	}
}
