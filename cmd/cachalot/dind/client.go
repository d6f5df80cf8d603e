package dind

import (
	"fmt"
	"strings"

	"github.com/cachalot-registry/cachalot/proxy/clients"
)

// clientFile renders a file of a client's configuration: what "cachalot client" prints. An
// error about a setting is of type [*clients.SettingError].
func clientFile(client string, s clients.Settings, name string) (string, error) {
	c, ok := clients.Named(client)
	if !ok {
		return "", fmt.Errorf("no client %q", client)
	}
	files, err := c.Config(s)
	if err != nil {
		return "", err
	}
	for _, f := range files {
		if strings.HasSuffix(f.Path, "/"+name) {
			return f.Content, nil
		}
	}
	return "", fmt.Errorf("client %q has no file %s", client, name)
}
