package upstream

import (
	"errors"
	"fmt"
	"io"
	"os"
)

// ReadSecret reads a file that contains a secret, of at most limit bytes. If the file
// cannot be read, the error does not name it: the operator may have written the secret
// itself in place of the file's name.
func ReadSecret(file string, limit int64) ([]byte, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, unnamed(err)
	}
	defer func() { _ = f.Close() }() // only read from
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	switch {
	case err != nil:
		return nil, unnamed(err)
	case int64(len(b)) > limit:
		return nil, fmt.Errorf("%s is longer than %d bytes", file, limit)
	}
	return b, nil
}

// unnamedFile is a file's error without the file's name.
type unnamedFile struct{ *os.PathError }

func (e unnamedFile) Error() string { return "cannot be read: " + e.Err.Error() }
func (e unnamedFile) Unwrap() error { return e.PathError }

func unnamed(err error) error {
	if at, ok := errors.AsType[*os.PathError](err); ok {
		return unnamedFile{at}
	}
	return err
}
