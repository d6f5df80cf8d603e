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

// Root is the folder that contains all paths: "/", except in tests.
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

// names returns the names of a folder's entries, sorted; none if it cannot be read.
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

// writable reports whether the file can be written, or created with its folders.
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

// write writes the file, or appends to it. It does not write a file that has the content
// already.
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
	// A half-written file might lack the marker, and the next start would not take it for ours.
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

// remove removes the file, and its folder if that is empty then.
func (r Root) remove(path string) error {
	if err := os.Remove(r.at(path)); err != nil {
		return fmt.Errorf("remove %s: %w", path, cause(err))
	}
	_ = os.Remove(filepath.Dir(r.at(path))) // fails if it is not empty
	return nil
}

// cause returns the error without its path, which begins with the root.
func cause(err error) error {
	if e, ok := errors.AsType[*fs.PathError](err); ok {
		return e.Err
	}
	if e, ok := errors.AsType[*os.LinkError](err); ok {
		return e.Err
	}
	return err
}
