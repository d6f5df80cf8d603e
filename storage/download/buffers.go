package download

import "sync"

// Buffers are the memory for pieces. All streams that share them have no more pieces
// than there are places.
type Buffers struct {
	places chan struct{} // one is held by each piece
	pool   sync.Pool
}

// NewBuffers has places for maxPieces.
func NewBuffers() *Buffers { return &Buffers{places: make(chan struct{}, maxPieces)} }

// take returns a piece's buffer, or nil where there is none to be had.
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
