// Package storage keeps blobs on local disk and fills them from a [Source].
//
// # On disk
//
//	PATH/lock                    flock: one process a folder
//	PATH/blobs/sha256/ab/<hex>   whole, verified, durable (temp, fsync, rename, fsync of the folder)
//	PATH/fills/sha256-<hex>      a download in progress or broken off; resumed on demand
//	PATH/index/                  badger: tags, links, sizes, access times, limits; disposable
//
// The disk is the truth for content. The index only remembers what the disk
// cannot say. When it is lost, a walk of blobs/ finds sizes again, and links and
// tags come back with the next HEAD to the upstream; no content is fetched again.
// Limits are forgotten: what had one is then kept as long as there is room.
//
// # A fill
//
// One goroutine writes, any number of readers follow; nobody holds anybody up.
//
//	Get ──┬─ on disk, linked ───────────────────────────► *os.File (sendfile)
//	      ├─ on disk or filling, not linked ────────────► ErrUnlinked: confirm upstream, PutLink, Get again
//	      ├─ filling ──────────────────────► join ──────► fillReader
//	      └─ absent ───────────────────────► start ─────► fillReader
//	                                           │
//	   run, once it has a slot of MaxFills,    ▼
//	   under the store's context:
//	      partial ─► Source ─► reserve ─► [ stream ─► file ─► hash ─► publish ]* ─► verify ─► settle
//	                              │            │                                      │         │
//	                              └── no room ─┴─► spilled                            ▼         ├─► commit: fsync, rename, index, link
//	                                               each reader                 readers get      └─► nobody wants it kept: unlink
//	                                               goes on alone               the last byte
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
// # How long
//
// A [Scope] says by its Keep how long what is asked for through it stays. A fill
// goes by the most generous of those who joined it, whoever started it. That is
// settled once it has verified, under Store.mu: who comes later to a fill that is
// not kept waits until it has left, and starts another. A partial belongs to the
// fill that goes on with it, so one that is not to be kept goes with its fill,
// however that ends, and the links made to join it go too. A link is written when
// its blob is.
//
// A blob's limit is moved by hits, which gather in memory like access times. The
// earliest limit is known, so that maintenance reads the index only when one can
// have passed. When room is needed, blobs that nothing points to go first, then
// those with a limit, then what was used only once, while that is more than a
// quarter of all, then the least recently used; manifests and small ones last.
// None goes that was used since it was picked.
//
// # Locks
//
// Store.mu guards the tables of fills, of open and of vanishing blobs, and the
// hits not yet written; fill.mu guards one fill's progress. fill.mu may be taken
// under Store.mu, never the other way round. No file or network I/O happens under
// either, but for one stat before a fill starts. ledger.mu is held while records
// are written, and Store.flushing while hits are; neither is taken under Store.mu.
//
// Whoever wants a digest that is in Store.going waits, then looks again: its blob
// or partial is being removed. So nobody gets a file that is about to go, and who
// removes it sees every hit.
package storage
