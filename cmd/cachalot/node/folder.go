package node

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
	"slices"
)

// folder is containerd's config_path. Links in it cannot lead to changes outside of it.
type folder struct {
	root  *os.Root
	owner string
}

func openFolder(dir, owner string) (*folder, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("open containerd's config_path: %w", err)
	}
	return &folder{root, owner}, nil
}

func (f *folder) close() { _ = f.root.Close() } // all written files are closed already

// apply writes each block into the hosts.toml of the folder of its name, and removes the
// owner's block from all other folders. The errors are by the folder's name, "" for config_path
// itself.
func (f *folder) apply(blocks map[string]block) map[string]error {
	failed := map[string]error{}
	names, err := f.names()
	if err != nil {
		return map[string]error{"": err}
	}
	for name := range maps.Keys(blocks) {
		if !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	for _, name := range names {
		var put *block
		if b, ok := blocks[name]; ok {
			put = &b
		}
		if err := f.change(name, put); err != nil {
			failed[name] = err
		}
	}
	return failed
}

// names returns the names of the folders.
func (f *folder) names() ([]string, error) {
	entries, err := fs.ReadDir(f.root.FS(), ".")
	if err != nil {
		return nil, fmt.Errorf("list containerd's config_path: %w", err)
	}
	var names []string
	for _, e := range entries {
		if e.IsDir() {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

// change writes a block into a folder's hosts.toml; put nil: it removes the owner's block.
func (f *folder) change(name string, put *block) error {
	file := path.Join(name, "hosts.toml")
	old, mode, err := f.read(file)
	if err != nil && put == nil && errors.Is(err, errNotAFile) {
		return nil // nothing of ours can be in it
	}
	if err != nil {
		return err
	}
	var content []byte
	if put == nil {
		content, err = without(old, f.owner)
	} else if err = f.hides(name, old); err == nil {
		content, err = with(old, *put)
	}
	if err != nil {
		return err
	}
	if err := f.replace(file, old, content, mode); err != nil {
		return err
	}
	if len(content) == 0 && len(old) > 0 {
		_ = f.root.Remove(name) // fails if it is not empty
	}
	return nil
}

var errNotAFile = errors.New("it is a link, or not a file")

// read returns a file's content and permissions. A file that does not exist is empty.
func (f *folder) read(file string) ([]byte, fs.FileMode, error) {
	info, err := f.root.Lstat(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, 0o644, nil
	}
	if err != nil {
		return nil, 0, err
	}
	if !info.Mode().IsRegular() {
		return nil, 0, errNotAFile
	}
	content, err := f.root.ReadFile(file)
	return content, info.Mode().Perm(), err
}

// hides returns an error if a folder without a hosts.toml has certificates: with a hosts.toml,
// containerd would ignore them.
func (f *folder) hides(name string, hosts []byte) error {
	if len(bytes.TrimSpace(hosts)) > 0 {
		return nil
	}
	entries, err := fs.ReadDir(f.root.FS(), name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		if slices.Contains([]string{".crt", ".cert", ".key"}, path.Ext(e.Name())) {
			return fmt.Errorf("containerd would ignore %s beside a hosts.toml; write a hosts.toml that names it", path.Join(name, e.Name()))
		}
	}
	return nil
}

// replace writes the new content of a file, or removes the file if that is empty.
func (f *folder) replace(file string, old, content []byte, mode fs.FileMode) error {
	switch {
	case bytes.Equal(old, content):
		return nil
	case len(content) == 0:
		return f.root.Remove(file)
	}
	return f.write(file, content, mode)
}

// write replaces a file. A power cut leaves the old or the new content, whole, because the file
// may have lines of others.
func (f *folder) write(file string, content []byte, mode fs.FileMode) (err error) {
	if err := f.root.MkdirAll(path.Dir(file), 0o755); err != nil {
		return err
	}
	// One name for each owner: the file that a killed process has left is overwritten.
	temporary := path.Join(path.Dir(file), "."+path.Base(file)+"."+f.owner)
	defer func() {
		if err != nil {
			_ = f.root.Remove(temporary) // the first error says what is wrong
		}
	}()
	w, err := f.root.OpenFile(temporary, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, mode)
	if err != nil {
		return err
	}
	_, err = w.Write(content)
	if err == nil {
		err = w.Chmod(mode) // without the process's umask
	}
	if err == nil {
		err = w.Sync()
	}
	if err := errors.Join(err, w.Close()); err != nil {
		return err
	}
	return f.root.Rename(temporary, file)
}

// authority is the name of the file with the mirror's CA, beside the folders of registries,
// where containerd does not look for files by itself.
func (f *folder) authority() string { return "cachalot-" + f.owner + ".pem" }

// setAuthority writes that file, or removes it if there is no CA.
func (f *folder) setAuthority(pem []byte) error {
	old, mode, err := f.read(f.authority())
	if err != nil {
		return err
	}
	return f.replace(f.authority(), old, pem, mode)
}

// direct returns the registries that have a folder without the owner's block: containerd does
// not read _default for them.
func (f *folder) direct() []string {
	names, _ := f.names() // apply has returned the error
	return slices.DeleteFunc(names, func(name string) bool {
		content, _, err := f.read(path.Join(name, "hosts.toml"))
		return name == defaultName || f.isProof(name) || err == nil && atLine(content, begin(f.owner)) >= 0
	})
}
