// Package storage keeps blobs on local disk and fills them from a [download.Source].
//
// # On disk
//
//	PATH/lock                    flock: one process a folder
//	PATH/blobs/sha256/ab/<hex>   whole, verified, durable (temp, fsync, rename, fsync of the folder)
//	PATH/fills/sha256-<hex>.<id> a download in progress or broken off; resumed on demand. id is of its upstream
//	PATH/quarantine/sha256-<hex> a blob that was found damaged, to be looked at; bounded, counts as blobs do
//	PATH/pins.json               what was pinned at run time; durable, and no part of the index
//	PATH/index/                  tags, links, sizes, access times, limits; disposable (see package index)
//	PATH/index.opening           deaths in a row while index/ was opened (see package index)
//	PATH/reserve                 space for the index to open and close with on a full disk
//
// The disk is the truth for content. The index only remembers what the disk
// cannot say. When it is lost, a walk of blobs/ finds sizes again, and links and
// tags come back with the next HEAD to the upstream; no content is fetched again.
// Limits are forgotten: what had one is then kept as long as there is room. An
// index of another format, which its manifest says, is as good as lost.
//
// # A fill
//
// One goroutine writes, any number of readers follow; nobody holds anybody up.
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
// There is one fill for a digest and upstream. What another upstream sends, how slowly,
// what it says of it, and what a broken download of it left are no concern of this one;
// two that verify make one blob. A place of the same upstream joins once that has said
// that the place has the digest (Admit): its link is written with the blob, or never.
//
// A reader that leaves never stops the writer. A writer that cannot write
// (no space, an I/O error) never stops a reader: the fill is spilled, and each
// reader reads what the file has and then the rest from the Source, with a
// copy of the hash that far.
//
// The stream goes on after breaks, and over several connections where a long blob is
// slow: see package download.
//
// # How long
//
// A [Scope] says by its Keep how long what is asked for through it stays. A fill
// goes by the most generous of those who joined it, whoever started it. That is
// settled once it has verified, under gate.mu: who comes later to a fill that is
// not kept waits until it has left, and starts another. A partial belongs to the
// fill that goes on with it, so one that is not to be kept goes with its fill,
// however that ends. A link is written when its blob is.
//
// A blob's limit is moved by hits, which gather in memory like access times. The
// earliest limit is known, so that maintenance reads the index only when one can
// have passed. When room is needed, blobs that nothing points to go first, then
// those with a limit, then what was used only once, while that is more than a
// quarter of all, then the least recently used; manifests and small ones last, while
// they are no more than an eighth of all. None goes that was used since it was picked, or has a link from a pinned
// repository, whatever its limit.
//
//	reserve ──┬─ fits ──────────────► go on ─── above the high mark? ──► trim, in the background:
//	          └─ breaks a limit ────► evictFor: wait, then go on ──────► down to the low mark
//
// A fill reserves as much again as has come, 1 to 64 MiB at a time: the length that an
// upstream announces is a claim, for which nothing goes. Where a blob of that length
// could not be kept, whatever went for it, the fill is spilled at once.
//
// trim works in steps of some 100 us, or of one blob, and rests a hundred times
// as long after each, so that hits hardly notice. Where a fill, or maintenance, finds a limit
// broken nobody rests until that has an end. Records are looked at by one goroutine at
// a time, and what it picks (evictor.picked) is evicted by trim or by a fill: a fill that waits
// uses what trim has found. Where pins and use leave too little for the low mark,
// nothing goes for it, only what a fill needs.
//
// # Purge
//
// Purge takes a digest out of places: their links go, and the file where no place is
// left. A fill in progress goes on; one that has all its bytes is waited for. Readers
// have the file open, and read on. PurgeAll does so for all digests
// of some places, a batch at a time, so that nothing grows with their number.
//
// A look at the index for people (Blobs, TagsAfter) goes in order from where
// the last one ended, and ends after so many. Summary takes links and records side by
// side, for both are in the order of digests, and is given out again for a while.
//
// # Start
//
// Hits need the database open, and nothing else. Then, one after the other, while
// hits and fills go on:
//
//	Open ──► add up records ──► walk of blobs/, a folder at a time ──► evict, if there is too much
//
// Until the records are added up only Config.MinFree limits fills, and the metrics
// of blobs are 0; who must evict waits for that. The walk compares names, and looks
// at a file only where the index has no record of it. In memory nothing is kept of
// a blob; the index's files have some 50 bytes of each, and as many of each place that
// it has a link from.
//
// # Books
//
// What counts for the limits and in the metrics is what files take of the disk, in
// blocks of 4 KiB: a million manifests of 1 KiB are 4 GB. Blobs are ledger.bytes,
// partials space.partial, damaged ones space.quarantined, and what running fills have
// yet to take space.reserved. The index and its reserve are in none of them.
//
// # Damage
//
// What is under its final name was right once. Disks forget, so it is looked at
// again, where that costs a hit nothing:
//
//	hit: the file's length ≠ the link's ──────────────────┐
//	walk at the start: empty, and has no record ──────────┤
//	response cut short ─► Broken: read on from there ─────┤
//	           │ that can be read                         ├─► quarantine ─► quarantine/, record and links
//	           ▼                                          │              dropped: the next Get is a miss
//	suspects ─► scrub: hash of each blob, once ───────────┤
//	            in ScrubEvery, by digest, from the cursor │
//	Verify, in another process: the same at once ─────────┘
//
// A link has its blob's length, so that a hit reads no record for it. The scrub
// reads with O_DIRECT: it finds what the page cache hides, and pushes nothing out
// of it. It waits for its rate and its turn with timers, so no clock matters; the
// cursor is a digest, kept in the index.
//
// quarantine asks once more what is wrong while no other caller can have the digest
// (gate.exclusive), for the file may be another by now. Readers that have the damaged
// one open go on with it; nothing can be done for them. A file that can be neither
// moved nor removed is in health.condemned: Get takes it for missing, and the next fill
// that can be kept is renamed over it.
//
// Verify takes no lock. It renames what it has read, if that still has its name;
// Get finds the file gone, and maintenance, which lists quarantine/, drops the
// record and the links, unless the blob is here again by then.
//
// # A full disk
//
// Blobs never fill the last 64 MiB (index.Floor), which the index needs. Changes of the
// index that find less wait in memory, and are read from there: see package index.
//
// # In memory
//
// A pull begins with a tag and manifests, which many clients ask for again and
// again. So small content stays in memory, once it has been compared with its digest,
// and goes with its blob. The index keeps links and tags that were just read.
//
// # Locks
//
// Each type says beside its fields what its lock guards. They are taken in this order:
//
//	evictor.trimming ─► evictor.turn ─► a digest, by gate.exclusive ─► accessLog.flushing ─► ledger.mu
//	health.listing ────────────────────► a digest, by gate.exclusive ─► space.mu ──────────► ledger.mu
//	gate.mu ─► fill.mu, accessLog.mu
//
// gate.mu is held for a moment, and not while its caller has a digest for itself. No file
// or network I/O happens under gate.mu, fill.mu and accessLog.mu, but for one stat before a
// fill starts. summaries.turn and health.mu have no other under
// them but the index's own, which come last. A hit on a file takes gate.mu, accessLog.mu
// and gate.mu; one on small content in memory takes accessLog.mu alone.
package storage
