package storage

import (
	"io/fs"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/cachalot-registry/cachalot/storage/index"
)

// reconcile walks the disk and makes the index agree with it, a folder at a time. A blob
// without a readable record gets one, unless its file is empty and should not be; a record
// without a file is dropped. It compares names, and reads the size of a file only if it has
// no record: with a million blobs, reading each size takes seconds of processor time. Hits
// and the scrub find files of the wrong length.
func (s *Store) reconcile() {
	start := time.Now()
	var found, lost int
	for _, a := range algorithms() {
		list := s.disk.shards(a)
		for shard := range shardNames {
			if s.life.ctx.Err() != nil {
				return
			}
			blobs, err := list(shard)
			if err != nil {
				s.log.Error("cannot read blob folder; its index records stay", "error", err)
				continue
			}
			f, l := s.reconcileShard(a.String()+":"+shard, blobs)
			found += f
			lost += l
		}
	}
	s.log.Info("index checked against the disk", "found_blobs", found, "lost_blobs", lost, "bytes", s.ledger.total(),
		"seconds", time.Since(start).Seconds())
}

// reconcileBatch is how many records are written at once. It bounds how long hits and
// downloads wait for ledger.mu.
const reconcileBatch = 256

// reconcileShard is reconcile for the digests with a prefix. blobs are their files on disk.
func (s *Store) reconcileShard(prefix string, blobs map[digest.Digest]fs.DirEntry) (found, lost int) {
	var missing []digest.Digest
	err := s.index.Records(prefix, func(d []byte, _ index.Record) bool {
		if _, here := blobs[digest.Digest(d)]; here {
			delete(blobs, digest.Digest(d))
		} else {
			missing = append(missing, digest.Digest(d))
		}
		return true
	})
	if err != nil {
		s.log.Error("cannot read index", "error", err)
		return 0, 0
	}
	for _, d := range missing {
		s.forget(d)
		lost++
	}
	records := make(map[digest.Digest]index.Record, min(len(blobs), reconcileBatch))
	write := func() {
		n, err := s.ledger.found(records, s.exists)
		if err != nil {
			s.log.Warn("cannot record blobs", "error", err)
		}
		found += n
		clear(records)
	}
	for d, e := range blobs {
		if s.life.ctx.Err() != nil {
			return found, lost
		}
		switch info, err := e.Info(); {
		case err != nil: // the file is gone
		case wrongSize(d, info.Size(), -1) != nil:
			s.health.quarantine(d, s.health.badSize(d, -1))
		default:
			records[d] = index.Record{Size: info.Size(), Accessed: info.ModTime().Unix()}
		}
		if len(records) == reconcileBatch {
			write()
		}
	}
	write()
	return found, lost
}
