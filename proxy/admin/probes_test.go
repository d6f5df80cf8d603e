package admin

import (
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
)

// TestBesidesProbes: probes get a response while other requests take all slots.
func TestBesidesProbes(t *testing.T) {
	t.Parallel()
	gate, begun := make(chan struct{}), make(chan struct{}, maxAdminWork)
	h := besidesProbes(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/slow" {
			begun <- struct{}{}
			<-gate
		}
	}))
	ask := func(client, path string) *httptest.ResponseRecorder {
		r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, path, http.NoBody)
		r.RemoteAddr = client + ":1"
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		return w
	}
	var slow sync.WaitGroup
	begin := func(client string, n int) {
		for range n {
			slow.Go(func() { ask(client, "/slow") })
			<-begun
		}
	}
	begin("192.0.2.1", maxAdminWork*3/4)
	if w := ask("192.0.2.1", "/slow"); w.Code != http.StatusServiceUnavailable || w.Header().Get("Retry-After") == "" {
		t.Errorf("one client too much: %d, %v", w.Code, w.Header())
	}
	begin("192.0.2.2", maxAdminWork/4)
	if w := ask("192.0.2.3", "/metrics"); w.Code != http.StatusServiceUnavailable {
		t.Errorf("all are taken: %d", w.Code)
	}
	for _, probe := range []string{"/healthz", "/readyz"} {
		if w := ask("192.0.2.1", probe); w.Code != http.StatusOK {
			t.Errorf("%s: %d", probe, w.Code)
		}
	}
	close(gate)
	slow.Wait()
	if w := ask("192.0.2.3", "/metrics"); w.Code != http.StatusOK {
		t.Errorf("afterwards: %d", w.Code)
	}
}
