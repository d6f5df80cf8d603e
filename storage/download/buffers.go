package download

import "sync"

// Buffers are the memory for pieces. All streams that share them have together at most as
// many pieces as there are places.
type Buffers struct {
	places chan struct{} // one is held by each piece
	pool   sync.Pool
}

// NewBuffers returns Buffers with places for maxPieces.
func NewBuffers() *Buffers { return &Buffers{places: make(chan struct{}, maxPieces)} }

// take returns a buffer for a piece, or nil if no place is free.
func (r *Buffers) take() []byte {
	select {
	case r.places <- struct{}{}:
	default:
		return nil
	}
	if b, ok := r.pool.Get().(*[pieceSize]byte); ok {
		return b[:]
	}
	return make([]byte, pieceSize)
}

func (r *Buffers) give(buf []byte) {
	r.pool.Put((*[pieceSize]byte)(buf[:pieceSize]))
	<-r.places
}
