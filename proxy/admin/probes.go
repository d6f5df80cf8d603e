package admin

import (
	"net"
	"net/http"
	"strconv"

	"github.com/cachalot-registry/cachalot/bounds"
)

// maxAdminWork bounds the concurrent requests of the admin listener. Probes are not counted,
// and have the rest of its connections: a pod is restarted if its probes are not answered.
const maxAdminWork = 48

// besidesProbes limits h to maxAdminWork concurrent requests, of which no client has all.
// /healthz and /readyz have no limit.
func besidesProbes(h http.Handler) http.Handler {
	places := bounds.NewBulkhead(maxAdminWork, bounds.DefaultShare)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/healthz" || r.URL.Path == "/readyz" {
			h.ServeHTTP(w, r)
			return
		}
		address, _, err := net.SplitHostPort(r.RemoteAddr)
		if err != nil {
			address = r.RemoteAddr
		}
		holder := bounds.Holder{Client: bounds.Client(address)}
		if !places.Enter(holder) {
			w.Header().Set("Retry-After", strconv.Itoa(int(bounds.RetryAfter.Seconds())))
			w.Header().Set("Connection", "close")
			http.Error(w, "too many requests are running here; ask again later", http.StatusServiceUnavailable)
			return
		}
		defer places.Leave(holder)
		h.ServeHTTP(w, r)
	})
}
