// Package download reads a blob from an upstream to its end, in order, and goes on
// after breaks. It knows no HTTP and no disk: a [Source] opens the blob, or a span of
// it, and a [Stream] gives the bytes.
//
// # Breaks
//
// When the connection breaks, the stream asks its Source for the rest: at once after
// the first break, then after longer and longer waits. It gives up after 15 s without
// progress, or 3 s before the first byte. Progress is 64 KiB. An error that wraps
// [ErrRefused] ends it at once.
//
// An upstream may answer with the whole blob where the rest was asked for. The stream
// skips what it has read, and does not compare it. An upstream may also announce
// another length than before: that is [ErrChanged].
//
//	Open ──► Source, at an offset ──► Read ──► ... ──► io.EOF
//	            ▲                       │
//	            └── rest of the part ◄──┴─ break
//
// # Several connections
//
// A long blob whose connections are slow comes over up to eight of them: see ahead.
// Each further one brings a piece into memory, which the stream reads in its turn:
//
//	first part ─► front ──────────► stream
//	piece ─► memory ──────┘  ▲
//	piece ─► memory ─────────┤       as long as the front is as quick as alone
//	tail ────────────────────┘       the rest, once more connections do not pay
//
// [Buffers] bound the pieces of all streams together. A stream that gets no buffer
// uses one connection. What a further connection does not bring, the stream asks for
// when it gets there.
//
// # Who compares
//
// A stream compares lengths and no digest. Its reader does that, and calls
// [Stream.Wrong] where the content is another one, so that the Source can ask another
// URL the next time.
//
// # Locks
//
// A stream belongs to one goroutine. Only its pieces are shared, each with the
// goroutine that fills it: piece.mu guards that, and no lock is taken under it.
package download
