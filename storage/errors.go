package storage

import (
	"errors"

	"github.com/cachalot-registry/cachalot/storage/download"
)

var (
	// ErrNotFound: the blob is not on disk.
	ErrNotFound = errors.New("blob not found")
	// ErrUnlinked: the blob is on disk, or is being filled, but was never seen in
	// this upstream and repository. Confirm it there, then call [Store.PutLink] or [Store.Admit].
	ErrUnlinked = errors.New("blob not seen in this repository")
	// ErrDigest: the bytes do not match the digest.
	ErrDigest = errors.New("content does not match its digest")
	// ErrNotStored: the blob is passed through and not stored, because there is no space.
	ErrNotStored = errors.New("blob is not stored")
	// ErrClosed: the store is closing.
	ErrClosed = errors.New("storage is closed")
	// ErrLocked: another process has the folder.
	ErrLocked = errors.New("another process uses this folder")
)

// isWrong reports whether err says that the upstream sent other content.
func isWrong(err error) bool { return errors.Is(err, ErrDigest) || errors.Is(err, download.ErrChanged) }
