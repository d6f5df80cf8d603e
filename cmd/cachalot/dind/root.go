package dind

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Root is the folder that all paths are below: "/", but in tests.
type Root string

func (r Root) at(path string) string { return filepath.Join(string(r), path) }

func (r Root) read(path string) ([]byte, error) {
	b, err := os.ReadFile(r.at(path))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, cause(err))
	}
	return b, nil
}

func (r Root) exists(path string) bool {
	_, err := os.Lstat(r.at(path))
	return err == nil
}

// names are those of a folder's entries, sorted; none if it cannot be read.
func (r Root) names(dir string) []string {
	entries, err := os.ReadDir(r.at(dir))
	if err != nil {
		return nil
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// writable says whether the file can be written, or made with its folders.
func (r Root) writable(path string) bool {
	if r.exists(path) {
		return unix.Access(r.at(path), unix.W_OK) == nil
	}
	for dir := filepath.Dir(path); ; dir = filepath.Dir(dir) {
		if info, err := os.Stat(r.at(dir)); err == nil {
			return info.IsDir() && unix.Access(r.at(dir), unix.W_OK) == nil
		}
		if dir == filepath.Dir(dir) {
			return false
		}
	}
}

// write makes the file, or adds to it. One that has the content stays untouched.
func (r Root) write(f File) error {
	path := r.at(f.Path)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("make the folder of %s: %w", f.Path, cause(err))
	}
	if f.Append { // in place: it may be mounted
		return r.add(f)
	}
	if old, err := os.ReadFile(path); err == nil && bytes.Equal(old, f.Content) {
		return nil
	}
	// Half of a file would not be known for ours at the next start.
	temporary := path + ".cachalot"
	if err := os.WriteFile(temporary, f.Content, 0o644); err != nil {
		return fmt.Errorf("write %s: %w", f.Path, cause(err))
	}
	if err := os.Rename(temporary, path); err != nil {
		_ = os.Remove(temporary) // the first error says what is wrong
		return fmt.Errorf("write %s: %w", f.Path, cause(err))
	}
	return nil
}

func (r Root) add(f File) error {
	w, err := os.OpenFile(r.at(f.Path), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
	if err != nil {
		return fmt.Errorf("open %s: %w", f.Path, cause(err))
	}
	_, err = w.Write(f.Content)
	if closed := w.Close(); err == nil {
		err = closed
	}
	if err != nil {
		return fmt.Errorf("add to %s: %w", f.Path, cause(err))
	}
	return nil
}

// remove removes the file, and its folder unless there is more in it.
func (r Root) remove(path string) error {
	if err := os.Remove(r.at(path)); err != nil {
		return fmt.Errorf("remove %s: %w", path, cause(err))
	}
	_ = os.Remove(filepath.Dir(r.at(path))) // fails where there is more
	return nil
}

// cause leaves out the path, which has the root before it.
func cause(err error) error {
	if e, ok := errors.AsType[*fs.PathError](err); ok {
		return e.Err
	}
	if e, ok := errors.AsType[*os.LinkError](err); ok {
		return e.Err
	}
	return err
}
