// Package storage keeps blobs on local disk and fills them from a [Source].
//
// # On disk
//
//	PATH/lock                    flock: one process a folder
//	PATH/blobs/sha256/ab/<hex>   whole, verified, durable (temp, fsync, rename, fsync of the folder)
//	PATH/fills/sha256-<hex>      a download in progress or broken off; resumed on demand
//	PATH/index/                  badger: tags, links, sizes, access times; disposable
//
// The disk is the truth for content. The index only remembers what the disk
// cannot say. When it is lost, a walk of blobs/ finds sizes again, and links and
// tags come back with the next HEAD to the upstream; no content is fetched again.
//
// # A fill
//
// One goroutine writes, any number of readers follow; nobody holds anybody up.
//
//	Get ──┬─ on disk, linked ───────────────────────────► *os.File (sendfile)
//	      ├─ on disk or filling, not linked ────────────► ErrUnlinked: confirm upstream, PutLink, Get again
//	      ├─ filling ──────────────────────► join ──────► fillReader
//	      └─ absent ── slot of MaxFills ───► start ─────► fillReader
//	                                           │
//	   run, under the store's context:         ▼
//	      partial ─► Source ─► reserve ─► [ stream ─► file ─► hash ─► publish ]* ─► verify ─► commit
//	                              │            │                         │             │
//	                              └── no room ─┴─► spilled               ▼             ▼
//	                                               each reader        readers get   fsync, rename, index
//	                                               goes on alone      the last byte
//
// A fill's phase moves only rightwards:
//
//	opening ─► streaming ─► verified
//	    └──────────┴──────► spilled | failed
//
// Readers wait on a channel that publish closes and replaces. They read the
// file with ReadAt up to the published length, less the bytes held back: the
// last byte of a response is given only once the whole blob has verified.
//
// A reader that leaves never stops the writer. A writer that cannot write
// (no space, an I/O error) never stops a reader: the fill is spilled, and each
// reader reads what the file has and then the rest from the Source, with a
// copy of the hash that far.
//
// # Locks
//
// Store.mu guards the tables of fills, of open blobs and the byte counters;
// fill.mu guards one fill's progress. fill.mu may be taken under Store.mu,
// never the other way round. No file or network I/O happens under either, but
// for one stat when the walk of the disk adds a file the index does not know.
package storage
