// Package index stores what the disk cannot say of blobs: their sizes and uses
// ([Record]), the places where each was seen ([Link]), tags ([Tag]), and the position of
// the scrub. It is a badger database, and the changes that wait to be written to it.
//
// Callers see typed values only. Keys, their order and the encoding of values are
// private to this package: see format.go.
//
//	DIR          badger
//	DIR.opening  a byte for each start in a row that died while it opened DIR
//	reserve      beside DIR: space for badger to open and close with on a full disk
//
// The index is disposable. A walk of the disk and the upstreams bring its content back. An
// index of another format is treated as lost.
//
// # A full disk
//
// badger writes through memory maps, from its own goroutines. If the disk has no block
// for a write, the process dies of SIGBUS, which cannot be caught. So:
//
//	put, remove ──► waiting ──┬─ space ────► badger, in a log whose blocks are allocated
//	                  ▲       └─ no space ─► stays, until the next write or Maintain finds space
//	get, scan ────────┴────────► then badger
//
// Space means: [Floor] bytes are free, the file system can be written, and one more file
// can be opened. Blobs never fill the last Floor bytes. Another program can fill them
// between the check and the write. A write has its blocks allocated already; unprotected
// are only the moments in which badger starts a new log, writes out the old one, and
// compacts. A program that fills Floor bytes in such a moment kills the process, and the
// next start finds the state of a killed process.
//
// If there is no space at the start, even without the reserve, badger is not opened until
// there is. Until then the walk of the disk finds blobs, and the upstreams confirm links.
// If two starts in a row die while opening the index, or within three seconds after it, the
// third one removes the index. One death may have another reason.
//
// # In memory
//
// Each pull starts with a tag and manifests, and many clients ask for the same ones. So
// links and tags that were just read stay in memory. A write removes the entries that it
// changes before it returns; a value that was read before a write is not added after it.
//
// The database's files are mapped: some 50 bytes a blob, and as many for each link. Their
// pages stay in memory while the kernel has space. Memory that heavy work has used is
// given back when the index has been idle for a while.
//
// # Bounds
//
// Clients and registries can add any number of tags and links, so Config.Max bounds both:
// see boundedRecords. Records need no own bound, because the disk bounds blobs.
//
// # Locks
//
// Each lock stands beside the fields that it guards. They are taken in this order:
// boundedRecords.recounting, boundedRecords.mu, Index.writing, Index.mu, recent.mu. No
// function of a caller is called under any of them.
package index
