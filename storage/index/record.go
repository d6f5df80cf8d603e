package index

import (
	"errors"
	"math"

	"github.com/opencontainers/go-digest"
)

// Record is what the index knows of a blob on disk.
type Record struct {
	Size     int64
	Accessed int64 // Unix seconds
	Until    int64 // Unix seconds; 0: no limit
	Manifest bool
	Orphaned bool   // nothing points to it any more
	Again    bool   // used again, some time after another use
	Uses     uint32 // answers from the stored blob, as far as they were written
}

// Expires returns when the record's limit passes, in Unix seconds.
func (r Record) Expires() int64 {
	if r.Until == 0 {
		return math.MaxInt64
	}
	return r.Until
}

// Record returns the record of a blob. One that cannot be decoded counts as missing: the
// walk of the disk writes it again.
func (x *Index) Record(d digest.Digest) (r Record, ok bool, err error) {
	_, err = x.get(blobKey(d), func(b []byte) error {
		var derr error
		r, derr = decodeRecord(b)
		ok = derr == nil
		return nil
	})
	return r, ok, err
}

// PutRecords writes the records of many blobs at once.
func (x *Index) PutRecords(records map[digest.Digest]Record) error {
	entries := make(map[string]entry, len(records))
	for d, r := range records {
		entries[string(blobKey(d))] = entry{value: r.encode()}
	}
	return x.write(entries)
}

// Forget removes a blob's record and its links. If there are none it writes nothing.
func (x *Index) Forget(d digest.Digest) error {
	gone := map[string]entry{}
	recorded, err := x.get(blobKey(d), func([]byte) error { return nil })
	if recorded {
		gone[string(blobKey(d))] = entry{deleted: true}
	}
	err = errors.Join(err, x.scan(linkPrefix(d), func(key, _ []byte) bool {
		gone[string(key)] = entry{deleted: true}
		return true
	}))
	if err != nil || len(gone) == 0 {
		return err
	}
	return x.write(gone)
}

// Records calls visit for each blob whose digest begins with prefix (an algorithm, a
// colon and an even number of digits, or nothing), until visit returns false. The digest
// is valid only during the call. Records skips records that cannot be read.
func (x *Index) Records(prefix string, visit func(d []byte, r Record) bool) error {
	key := []byte{'b'}
	if prefix != "" {
		key = pack(key, digest.Digest(prefix))
	}
	v := x.view(key)
	defer v.close()
	return v.records(visit)
}

// Snapshot is all records at one moment. Close it.
type Snapshot struct{ view view }

// Snapshot returns the records as they are now, to be read later.
func (x *Index) Snapshot() Snapshot { return Snapshot{x.view([]byte{'b'})} }

// Records is [Index.Records] of all, at the moment of the snapshot.
func (s Snapshot) Records(visit func(d []byte, r Record) bool) error { return s.view.records(visit) }

// Close lets the snapshot go.
func (s Snapshot) Close() { s.view.close() }

func (v view) records(visit func(d []byte, r Record) bool) error {
	var d []byte
	return v.scan(func(key, value []byte) bool {
		r, err := decodeRecord(value)
		if err != nil || len(key) < 1 {
			return true
		}
		var ok bool
		d, ok = unpack(d[:0], key[1:])
		return !ok || visit(d, r)
	})
}

// ScrubPosition returns the last digest that the scrub has read; "": it starts over.
func (x *Index) ScrubPosition() (last digest.Digest, err error) {
	_, err = x.get(scrubKey(), func(b []byte) (err error) {
		last, err = decodeDigest(b)
		return err
	})
	return last, err
}

// SetScrubPosition records the last digest that the scrub has read; "": it starts over.
func (x *Index) SetScrubPosition(last digest.Digest) error {
	if last == "" {
		return x.remove(scrubKey())
	}
	return x.put(scrubKey(), pack(nil, last), 0)
}
