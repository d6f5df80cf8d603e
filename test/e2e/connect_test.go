//go:build e2e

package e2e

import (
	"io"
	"net"
	"net/http"
	"slices"
	"sync"
)

// connects is a proxy for HTTPS (RFC 9110, section 9.3.6) that connects to one address and
// records the requested hosts.
type connects struct {
	allowed []string
	address string

	mu    sync.Mutex // guards hosts
	hosts []string
}

// seen returns the requested hosts so far, each once.
func (c *connects) seen() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	list := slices.Clone(c.hosts)
	slices.Sort(list)
	return slices.Compact(list)
}

func (c *connects) forget() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.hosts = nil
}

func (c *connects) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	host := r.Host
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	c.mu.Lock()
	c.hosts = append(c.hosts, host)
	c.mu.Unlock()
	if r.Method != http.MethodConnect || !slices.Contains(c.allowed, host) {
		http.Error(w, "not through here", http.StatusForbidden)
		return
	}
	up, err := new(net.Dialer).DialContext(r.Context(), "tcp", c.address)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadGateway)
		return
	}
	defer up.Close()
	w.WriteHeader(http.StatusOK)
	down, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return
	}
	defer down.Close()
	var ended sync.WaitGroup
	ended.Go(func() {
		_, _ = io.Copy(up, buffered) // either side may close
		_ = up.(*net.TCPConn).CloseWrite()
	})
	_, _ = io.Copy(down, up)
	_ = down.Close()
	ended.Wait()
}
