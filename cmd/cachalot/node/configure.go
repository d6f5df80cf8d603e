package node

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	systemd "github.com/coreos/go-systemd/v22/dbus"
	"github.com/godbus/dbus/v5"
)

// comesBack is how long containerd may take to answer after its restart.
const comesBack = time.Minute

// configure has containerd read the first folder: it writes config_path into its
// configuration, and restarts it. If containerd does not read the folder then, or does not
// answer, the file becomes what it was.
func (n *Node) configure(ctx context.Context) (dir string, err error) {
	dir = n.machine.folders[0]
	if !n.machine.own {
		return "", errNotRead
	}
	version, err := n.cri.version(ctx)
	if err != nil {
		return "", err
	}
	before, err := n.writeSettings(version, dir)
	if err != nil {
		return "", fmt.Errorf("%w; %w", errNotRead, err)
	}
	n.log.Info("wrote config_path into containerd's configuration; restarting containerd", "path", settingsFile, "config_path", dir)
	err = n.restarted(ctx)
	if err == nil {
		_, err = n.cri.reads(ctx, []string{dir})
	}
	if err == nil {
		return dir, nil
	}
	n.log.Error("containerd does not read the folder with this configuration; restoring the former one", "path", settingsFile, "error", err)
	n.failed = err
	return "", errors.Join(err, n.replaceSettings(before), n.restarted(ctx))
}

// restarted restarts containerd, and waits until it answers.
func (n *Node) restarted(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, comesBack)
	defer cancel()
	if err := n.restart(ctx); err != nil {
		return fmt.Errorf("restart containerd: %w", err)
	}
	for {
		_, err := n.cri.version(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("containerd does not answer after its restart: %w", err)
		case <-time.After(time.Second):
		}
	}
}

// writeSettings writes config_path into containerd's configuration, and returns what that was.
func (n *Node) writeSettings(version, dir string) (before []byte, err error) {
	s, err := readSettings(n.cfg.Root, version)
	if err != nil {
		return nil, err
	}
	content, err := s.withPath(n.cfg.Owner, dir)
	if err != nil {
		return nil, err
	}
	return s.content, n.replaceSettings(content)
}

// restoreSettings takes config_path out of the file again. containerd is not restarted: it goes
// on reading an empty folder, and pods need not notice.
func (n *Node) restoreSettings() error {
	content, err := os.ReadFile(filepath.Join(n.cfg.Root, settingsFile))
	if err != nil || atLine(content, begin(n.cfg.Owner)) < 0 {
		return nil //nolint:nilerr // there is nothing of ours in it
	}
	content, err = withoutPath(content, n.cfg.Owner)
	if err != nil {
		return err
	}
	return n.replaceSettings(content)
}

// replaceSettings replaces the file, or removes it if there is to be none.
func (n *Node) replaceSettings(content []byte) error {
	f, err := openFolder(filepath.Join(n.cfg.Root, filepath.Dir(settingsFile)), n.cfg.Owner)
	if err != nil {
		return err
	}
	defer f.close()
	name := filepath.Base(settingsFile)
	old, mode, err := f.read(name)
	if err != nil {
		return fmt.Errorf("%s: %w", settingsFile, err)
	}
	if bytes.Equal(old, content) {
		return nil
	}
	return f.replace(name, old, content, mode)
}

// restartUnit restarts a unit by systemd, as "systemctl restart" does.
func restartUnit(ctx context.Context, root, unit string) error {
	conn, err := systemd.NewConnection(func() (*dbus.Conn, error) {
		conn, err := dbus.Dial("unix:path="+filepath.Join(root, "run/systemd/private"), dbus.WithContext(ctx))
		if err != nil {
			return nil, err
		}
		if err := conn.Auth([]dbus.Auth{dbus.AuthExternal(strconv.Itoa(os.Getuid()))}); err != nil {
			_ = conn.Close() // nothing was sent
			return nil, err
		}
		return conn, nil
	})
	if err != nil {
		return fmt.Errorf("reach systemd: %w", err)
	}
	defer conn.Close()
	done := make(chan string, 1)
	if _, err := conn.RestartUnitContext(ctx, unit, "replace", done); err != nil {
		return err
	}
	select {
	case result := <-done:
		if result != "done" {
			return fmt.Errorf("systemd says that the restart of %s has %s", unit, result)
		}
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
