// Package index remembers what the disk cannot say of blobs: their sizes and uses
// ([Record]), the places where each was seen ([Link]), tags ([Tag]), and how far the
// scrub has come. It is a badger database, and what waits to be written to it.
//
// Callers see typed values only. Keys, their order and the encoding of values are
// this package's own: see format.go.
//
//	DIR          badger
//	DIR.opening  a byte for every start in a row that died while it opened DIR
//	reserve      beside DIR: space for badger to open and close with on a full disk
//
// The index is disposable. What is lost comes back from a walk of the disk and from
// the upstreams. An index of another format is as good as lost.
//
// # A full disk
//
// badger writes through memory maps, from goroutines of its own. Where the disk
// has no block for that, the process dies of SIGBUS; nothing can catch it. So:
//
//	put, remove ──► waiting ──┬─ room ───► badger, in a log whose blocks are allocated
//	                  ▲       └─ none ───► stays, until the next write or Maintain finds room
//	get, scan ────────┴────────► then badger
//
// Room is [Floor] bytes free, a file system that can be written, and one descriptor.
// Blobs never fill that space. Others can, between the look and the write, but a
// write finds its blocks allocated: there remain the moments in which badger
// begins a new log, writes out the old one and compacts. Whoever then takes
// Floor bytes at once kills the process, and the next start finds what a kill leaves.
//
// Where there is no room at the start, not with the reserve given up either, badger
// is not opened until there is: blobs are found by the walk of the disk, links by
// asking upstream. An index that badger dies of is thrown away by the third start: one
// death before it was read, or within three seconds, can be a kill.
//
// # In memory
//
// A pull begins with a tag and manifests, which many clients ask for again and
// again. So links and tags that were just read stay in memory. A write takes out what
// it changes, before it returns; what was read before it is not taken in after it.
//
// The database's files are mapped: some 50 bytes a blob, and as many for each place
// that it has a link from. What was read of them stays as long as the kernel has room. What much work leaves in memory is given back when the index has rested
// for a while.
//
// # Bounds
//
// Clients and registries add tags and links at will, so both are kept within
// Config.Max: see boundedRecords. Records need no bound of their own; the disk
// bounds blobs.
//
// # Locks
//
// Each lock stands beside what it guards. boundedRecords.recounting is taken first, then
// boundedRecords.mu, Index.writing and Index.mu. recent.mu is taken last, and nothing is
// done under it. No function of a caller is called under any of them.
package index
