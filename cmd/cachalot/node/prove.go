package node

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// prove finds out which folder containerd reads, and uses that one.
func (n *Node) prove(ctx context.Context) {
	if n.cri == nil || !n.due() {
		return
	}
	started := n.cri.started()
	dir, err := n.cri.reads(ctx, n.candidates())
	if errors.Is(err, errNotRead) && n.cfg.Configure && n.failed == nil {
		dir, err = n.configure(ctx)
		started = n.cri.started()
	}
	if ctx.Err() != nil {
		return
	}
	if err == nil && dir != n.dir {
		err = n.move(dir)
	}
	n.tidy()
	n.proof = proof{n.explained(ctx, err), time.Now(), started}
	if n.proof.err != nil {
		n.say("containerd", slog.LevelError, "the mirror is not used", "error", n.proof.err)
	} else {
		n.say("containerd", slog.LevelInfo, "containerd reads the folder", "config_path", dir)
	}
}

// due reports whether a proof is to be taken now.
func (n *Node) due() bool {
	lasts := provenFor
	switch {
	case errors.Is(n.proof.err, errNotRead):
		lasts = unprovenFor
	case n.proof.err != nil:
		lasts = 0
	}
	return n.proof.started == "" || n.proof.started != n.cri.started() || time.Since(n.proof.at) >= lasts
}

// candidates returns the folders that containerd may read, and makes those that must exist for
// that.
func (n *Node) candidates() []string {
	if n.cri.exists() != nil {
		return nil // no folder is made for a containerd that is not there
	}
	return slices.DeleteFunc(slices.Clone(n.machine.folders), func(dir string) bool {
		path := filepath.Join(n.cfg.Root, dir)
		if dir == n.machine.folders[0] || dir == splitPath {
			return os.MkdirAll(path, 0o755) != nil // such as on a read-only file system
		}
		_, err := os.Stat(path)
		return err != nil
	})
}

// move takes the mirror out of the former folder, and uses another one.
func (n *Node) move(dir string) error {
	if err := n.remove(); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return n.use(dir)
}

// tidy takes the mirror out of the folders that are not used, such as those of an earlier
// start.
func (n *Node) tidy() {
	for _, dir := range n.machine.folders {
		if dir == n.dir {
			continue
		}
		f, err := openFolder(filepath.Join(n.cfg.Root, dir), n.cfg.Owner)
		if err != nil {
			continue // most do not exist
		}
		f.apply(nil)
		_ = f.setAuthority(nil) // a file without a meaning may stay
		f.close()
	}
	if n.dir != splitPath {
		n.removeSplitPath()
	}
}

// removeSplitPath removes [splitPath] where it is empty: nothing but #12808 gives it a meaning.
func (n *Node) removeSplitPath() {
	if !slices.Contains(n.machine.folders, splitPath) {
		return
	}
	top := filepath.Join(n.cfg.Root, splitPath[:strings.IndexByte(splitPath, ':')+1])
	for path := filepath.Join(n.cfg.Root, splitPath); strings.HasPrefix(path, top); path = filepath.Dir(path) {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return // it is not empty
		}
	}
}

// explained adds to errNotRead what to do; other errors say it.
func (n *Node) explained(ctx context.Context, err error) error {
	if !errors.Is(err, errNotRead) {
		return err
	}
	version, verr := n.cri.version(ctx)
	if verr != nil {
		return verr
	}
	mend := n.machine.mend
	if n.machine.own {
		s, serr := readSettings(n.cfg.Root, version)
		if serr == nil {
			serr = s.refusal()
		}
		if mend = s.mend(n.machine.folders[0]); serr != nil {
			mend = serr.Error()
		}
	}
	if n.failed != nil {
		mend += fmt.Sprintf(" (--configure-containerd has failed: %v)", n.failed)
	}
	return fmt.Errorf("%s %s, %s: %w; %s", n.machine.name, version, n.machine.folders[0], err, mend)
}

// sweep removes what a killed process has left.
func (n *Node) sweep() {
	for _, dir := range n.machine.folders {
		if f, err := openFolder(filepath.Join(n.cfg.Root, dir), n.cfg.Owner); err == nil {
			f.sweep()
			f.close()
		}
	}
}

// open opens the folder of the files.
func (n *Node) open() (*folder, error) {
	return openFolder(filepath.Join(n.cfg.Root, n.dir), n.cfg.Owner)
}
