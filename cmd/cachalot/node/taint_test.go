package node

import (
	"encoding/json"
	"encoding/pem"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestUntaint: all taints of the key are removed, others stay, and an error of the API server
// is returned.
func TestUntaint(t *testing.T) {
	t.Parallel()
	const key = "cachalot.example/starting"
	taints := []taint{{"a"}, {key}, {"b"}, {key}}
	patches := 0
	api := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/api/v1/nodes/worker-1" || r.Header.Get("Authorization") != "Bearer secret" {
			w.WriteHeader(http.StatusForbidden)
			return
		}
		if r.Method == http.MethodPatch {
			patches++
			body, _ := io.ReadAll(r.Body)
			var patch []map[string]string
			if err := json.Unmarshal(body, &patch); err != nil || len(patch) != 2 || r.Header.Get("Content-Type") != "application/json-patch+json" {
				t.Errorf("%v: %s", err, body)
			}
			at := slices.IndexFunc(taints, func(tt taint) bool { return tt.Key == key })
			if patch[0]["op"] != "test" || patch[0]["value"] != key || patch[1]["op"] != "remove" || patch[0]["path"] != patch[1]["path"]+"/key" || patch[1]["path"] != "/spec/taints/"+string(rune('0'+at)) {
				t.Errorf("%s", body)
			}
			taints = slices.Delete(taints, at, at+1)
		}
		node := map[string]any{"spec": map[string]any{"taints": taints}}
		if err := json.NewEncoder(w).Encode(node); err != nil {
			t.Error(err)
		}
	}))
	defer api.Close()
	folder := t.TempDir()
	write := func(name, content string) {
		if err := os.WriteFile(filepath.Join(folder, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("token", "secret\n")
	write("ca.crt", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: api.Certificate().Raw})))
	k := kubernetes{api.URL, folder, "worker-1"}
	for range 2 {
		if err := k.untaint(t.Context(), key); err != nil {
			t.Error(err)
		}
	}
	if !slices.Equal(taints, []taint{{"a"}, {"b"}}) || patches != 2 {
		t.Errorf("left %v after %d patches", taints, patches)
	}
	write("token", "expired")
	if err := k.untaint(t.Context(), key); err == nil || !strings.Contains(err.Error(), "read the node worker-1: the API server answers 403 Forbidden") {
		t.Error(err)
	}
}
