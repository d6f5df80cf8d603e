package storage

import (
	"github.com/hashicorp/golang-lru/v2/simplelru"
	"github.com/opencontainers/go-digest"
)

// maxContent bounds the small content in memory, in bytes.
const maxContent = 16 << 20

// memory has the small blobs that were read last, mostly manifests, which each pull asks
// for. They have been compared with their digests. accessLog.mu guards it.
type memory struct {
	blobs *simplelru.LRU[digest.Digest, []byte]
	bytes int
}

func newMemory() *memory {
	c := &memory{}
	var err error
	c.blobs, err = simplelru.NewLRU(maxContent, func(_ digest.Digest, b []byte) { c.bytes -= len(b) })
	if err != nil {
		panic(err) // its size is not positive
	}
	return c
}

func (c *memory) get(d digest.Digest) ([]byte, bool) { return c.blobs.Get(d) }

func (c *memory) add(d digest.Digest, b []byte) {
	c.remove(d)
	c.blobs.Add(d, b)
	for c.bytes += len(b); c.bytes > maxContent; {
		c.blobs.RemoveOldest()
	}
}

func (c *memory) remove(d digest.Digest) { c.blobs.Remove(d) }
