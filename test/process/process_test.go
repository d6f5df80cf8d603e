package process

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/cachalot-registry/cachalot/test/cachalotd"
)

func TestMain(m *testing.M) { cachalotd.Main(m) }

// server is a running cachalot.
type server struct{ *cachalotd.Process }

// start runs `wrap... cachalot serve` with the folder and waits until it is ready.
func start(t *testing.T, folder, upstream string, wrap ...string) *server {
	t.Helper()
	return startConfig(t, basicConfig(folder, upstream), wrap...)
}

func startConfig(t *testing.T, config string, wrap ...string) *server {
	t.Helper()
	return &server{cachalotd.Start(t, config, wrap...)}
}

// run is start for a process that may end; it has no URL then.
func run(t *testing.T, folder, upstream string) *server {
	t.Helper()
	return &server{cachalotd.Run(t, basicConfig(folder, upstream))}
}

// basicConfig is run's configuration, with more keys of storage.
func basicConfig(folder, upstream string, storage ...string) string {
	keys := strings.Join(append([]string{"path: " + folder, "min_free: 0"}, storage...), ", ")
	return fmt.Sprintf("storage: {%s}\nupstreams: {docker.io: {url: %s}}\n", keys, upstream)
}

// count is the number of a test's rounds: few for `go test ./...`, and the variable's value
// if a section of .ci/run searches for rare failures.
func count(t *testing.T, variable string, few int) int {
	t.Helper()
	value := os.Getenv(variable)
	if value == "" {
		return few
	}
	n, err := strconv.Atoi(value)
	if err != nil || n < 1 {
		t.Fatalf("%s=%q: want a number above 0", variable, value)
	}
	return n
}

// partialFile is the file of a download from basicConfig's registry.
func partialFile(folder string, d digest.Digest) string {
	upstream := sha256.Sum256([]byte("docker.io"))
	return filepath.Join(folder, "fills", fmt.Sprintf("sha256-%s.%x", d.Encoded(), upstream[:8]))
}

// fetch fetches a blob and checks it. If the mirror is killed in between, the error does
// not matter.
func (s *server) fetch(client *http.Client, d digest.Digest) error {
	resp, err := client.Get(s.URL + "/v2/library/app/blobs/" + d.String()) //nolint:noctx // ends with the server
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		_, err := io.Copy(io.Discard, resp.Body) // so that the connection can be reused
		return errors.Join(fmt.Errorf("status %d", resp.StatusCode), err)
	}
	verifier := d.Verifier()
	if _, err := io.Copy(verifier, resp.Body); err != nil {
		return err
	}
	if !verifier.Verified() {
		return errWrongBytes
	}
	return nil
}

var errWrongBytes = errors.New("a complete answer with wrong bytes")
