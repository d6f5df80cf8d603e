package upstream

import (
	"errors"
	"fmt"
	"io"
	"os"
)

// ReadSecret reads a file that has a secret, of at most limit bytes. The error of one
// that cannot be opened does not name it: the secret itself may stand in the place of
// the file's name.
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

// unnamedFile is the error of a file without its name.
type unnamedFile struct{ *os.PathError }

func (e unnamedFile) Error() string { return "cannot be read: " + e.Err.Error() }
func (e unnamedFile) Unwrap() error { return e.PathError }

func unnamed(err error) error {
	if at, ok := errors.AsType[*os.PathError](err); ok {
		return unnamedFile{at}
	}
	return err
}
