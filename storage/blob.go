package storage

import (
	"bytes"
	"context"
	"io"
	"os"
	"sync"

	"github.com/opencontainers/go-digest"
)

// Outcome says where a [Blob] came from.
type Outcome int

// Outcomes of [Store.Get].
const (
	Hit       Outcome = iota // from disk, or from a fill that has verified
	Miss                     // this call started the fill
	Collapsed                // joined a fill in progress
)

// Blob is an open blob. Close it.
type Blob struct {
	Digest    digest.Digest
	Size      int64 // -1 while a fill does not know it
	MediaType string
	Outcome   Outcome
	Stored    bool // on disk, or about to be as far as is known; false where it is not to be kept
	// Content is the *os.File of a blob on disk, so that sendfile can be used, a
	// *bytes.Reader of a small one, or a reader that follows a fill. It belongs to
	// one goroutine.
	Content io.ReadSeeker

	from   opened
	closed sync.Once
}

// opened is what a [Blob] was opened from; its methods are those of Blob. close is called
// once.
type opened interface {
	wait(ctx context.Context) error
	hold(last int64)
	broken()
	close()
}

// Wait returns when the whole blob has verified, or the error of its fill.
func (b *Blob) Wait(ctx context.Context) error { return b.from.wait(ctx) }

// Hold keeps the byte at offset last, and all after it, from the reader until
// the whole blob has verified: a range that ends there must not complete before.
// Without it that is the blob's last byte.
func (b *Blob) Hold(last int64) { b.from.hold(last) }

// Broken says that Content could not be read, or ended early, in the midst of a
// response. When it returns, a file that cannot be read on from there is in
// quarantine, so that who asks again gets the blob from upstream; a file that can
// is read whole in the background.
func (b *Blob) Broken() { b.from.broken() }

// Close lets the blob go. The fill it came from goes on.
func (b *Blob) Close() { b.closed.Do(b.from.close) }

// onDisk is the file of a blob, whose digest was entered in the gate.
type onDisk struct {
	store  *Store
	file   *os.File
	digest digest.Digest
}

func (onDisk) wait(context.Context) error { return nil } // it was verified before it got its name
func (onDisk) hold(int64)                 {}
func (o onDisk) broken()                  { o.store.health.broken(o.file, o.digest) }

func (o onDisk) close() {
	_ = o.file.Close() // only read
	o.store.gate.leave(o.digest)
}

// openMemory is a blob that needs no file.
func openMemory(d digest.Digest, mediaType string, b []byte) *Blob {
	return &Blob{
		Digest: d, Size: int64(len(b)), MediaType: mediaType, Outcome: Hit, Stored: true, Content: bytes.NewReader(b),
		from: inMemory{},
	}
}

// inMemory is small content that was compared with its digest before.
type inMemory struct{}

func (inMemory) wait(context.Context) error { return nil }
func (inMemory) hold(int64)                 {}
func (inMemory) broken()                    {}
func (inMemory) close()                     {}
