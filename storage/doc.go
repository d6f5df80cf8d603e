// Package storage stores blobs on local disk. It downloads a missing blob from a
// Source and serves it to all waiting clients while it arrives.
//
// # On disk
//
//	PATH/lock                    flock: one process a folder
//	PATH/blobs/sha256/ab/<hex>   whole, verified, durable (temp, fsync, rename, fsync of the folder)
//	PATH/fills/sha256-<hex>.<id> a partial: a download in progress or broken off; id is of its upstream
//	PATH/quarantine/sha256-<hex> a damaged blob, for inspection; bounded, counts towards the limit
//	PATH/pins.json               run-time pins; durable, not part of the index
//	PATH/index/                  tags, links, sizes, access times, limits; disposable (see package index)
//	PATH/index.opening           starts in a row that died while opening index/ (see package index)
//	PATH/reserve                 space for the index to open and close with on a full disk
//
// The disk is the truth for content. The index has only what the disk cannot say.
// If the index is lost, or has another format, a walk of blobs/ finds the sizes
// again, and the next HEAD to the upstream brings back links and tags. No content is
// downloaded again. Limits are lost: a blob that had one is stored while there is space.
//
// # A fill
//
// A fill is one download: one goroutine writes, any number of readers follow. There is
// one fill for each digest and upstream. Two that verify make one blob.
//
//	Get ──┬─ on disk, linked ───────────────────────────► *os.File (sendfile)
//	      ├─ on disk, not linked ───────────────────────► ErrUnlinked: confirm upstream, PutLink, Get again
//	      ├─ filling, not linked ───────────────────────► ErrUnlinked: confirm upstream, Admit, Get again
//	      ├─ filling ──────────────────────► join ──────► fillReader
//	      └─ absent ───────────────────────► start ─────► fillReader
//	                                           │
//	   run, once it has a slot of MaxFills,    ▼
//	   under the store's context:
//	      partial ─► Source ─► reserve ─► [ stream ─► file ─► hash ─► publish ]* ─► verify ─► settle
//	                              │            │                                      │         │
//	                              └─ no space ─┴─► passing through                    ▼         ├─► commit: fsync, rename, index, link
//	                                               each reader                 readers get      └─► NoStore: unlink
//	                                               goes on alone               the last byte
//
// The phase of a fill changes only to the right:
//
//	opening ─► streaming ─► verified
//	    └──────────┴──────► passing through | failed
//
// Readers read the file up to the published length. The last byte of a response is
// sent only after the whole blob has verified.
//
// A reader that leaves does not stop the writer. A write that fails (no space, an I/O
// error) does not stop the readers: the fill is passed through: each reader reads the file
// as far as it goes and then the rest from the Source, with its own copy of the hash.
// The blob is then not stored. A long blob on slow connections uses several of them.
//
// [Scope].Keep says whether a blob is stored, and for how long. The most generous Keep
// of those who joined the fill applies, up to the moment it has verified.
//
// # Who owns what
//
// [Store] has the methods that other packages call. Its parts:
//
//	disk       paths, durable writes, free space
//	gate       who may open, fill or remove a digest now; the table of fills
//	fill       one download, its file, its phase; fillReader reads it
//	slots      how many fills run at once, by upstream, repository and client
//	space      the account of the disk: partial, reserved and quarantined bytes, and the limits
//	ledger     the number and bytes of blobs; equal to the index's records
//	evictor    which blobs are evicted, and when
//	accessLog  uses of blobs, written to the index in batches; small blobs in memory
//	health     damaged blobs: scrub, suspects, quarantine, condemned
//	summaries  the totals by repository, for the admin API
//	index      records, links and tags (package index)
//	lifetime   the goroutines, from Open to Close
//
// Each type says beside its fields what its lock guards, and which locks are taken
// under it.
//
// # Eviction
//
// Above the high mark the evictor trims to the low mark in the background, and rests
// after each step. A fill waits for an eviction only if it would exceed a limit. Orphaned
// blobs go first, then those with a limit, then those used once, then the least recently
// used, and small ones last. A blob that is open, pinned, or used since it was picked
// stays. docs/eviction.md has the rule and its measurements.
//
// # Start
//
// [Open] returns as soon as the index is open: hits and fills start at once. In the
// background follow, in this order:
//
//	Open ──► add up records ──► walk of blobs/, a folder at a time ──► evict, if over a limit
//
// Until the records are added up, evictions wait, only Config.MinFree limits fills, and
// the metrics of blobs are 0. The walk compares names, and reads the size of files that
// have no record. Then maintenance runs once a minute: it writes access times,
// evicts expired blobs, and updates the quarantine.
package storage
