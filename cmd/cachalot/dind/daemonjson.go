package dind

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
)

// daemonJSON is the part of dockerd's configuration file that this package needs.
type daemonJSON struct {
	path string
	// has are the keys that are present, even without a value: dockerd does not start if a flag
	// sets the same.
	has map[string]bool

	DataRoot           string                       `json:"data-root"`
	StorageDriver      string                       `json:"storage-driver"`
	UsernsRemap        string                       `json:"userns-remap"`
	RegistryMirrors    []string                     `json:"registry-mirrors"`
	InsecureRegistries []string                     `json:"insecure-registries"`
	Features           map[string]bool              `json:"features"`
	DefaultNetworkOpts map[string]map[string]string `json:"default-network-opts"`
	Proxies            struct {
		HTTP  string `json:"http-proxy"`
		HTTPS string `json:"https-proxy"`
		No    string `json:"no-proxy"`
	} `json:"proxies"`
}

// readDaemonJSON reads the file. A file that does not exist counts as empty.
func readDaemonJSON(root Root, path string) (daemonJSON, error) {
	none := daemonJSON{path: path}
	if path == "" { // from --config-file=
		return none, nil
	}
	b, err := root.read(path)
	if errors.Is(err, fs.ErrNotExist) {
		return none, nil
	}
	if err != nil {
		return none, err
	}
	b = bytes.TrimSpace(bytes.TrimPrefix(b, []byte("\ufeff"))) // dockerd ignores a byte order mark too
	if len(b) == 0 {
		return none, nil
	}
	d := daemonJSON{path: path, has: make(map[string]bool)}
	var keys map[string]json.RawMessage
	if err := json.Unmarshal(b, &keys); err != nil {
		return none, fmt.Errorf("read %s: %w", path, err)
	}
	if err := json.Unmarshal(b, &d); err != nil {
		return none, fmt.Errorf("read %s: %w", path, err)
	}
	for key := range keys {
		d.has[key] = true
	}
	return d, nil
}

// bridgeMTU reports whether default-network-opts sets the MTU of bridges.
func (d daemonJSON) bridgeMTU() bool {
	_, ok := d.DefaultNetworkOpts["bridge"][mtuOption]
	return ok
}
