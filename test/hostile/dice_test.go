package hostile

import (
	"crypto/sha256"
	"math/rand/v2"
	"sync"
)

// dice takes its decisions from bytes, then from a generator with the bytes as seed.
type dice struct {
	mu    sync.Mutex // guards the fields below
	bytes []byte
	rest  *rand.Rand
}

func newDice(data []byte) *dice {
	return &dice{bytes: data, rest: rand.New(rand.NewChaCha8(sha256.Sum256(data)))} //nolint:gosec // repeatable
}

// n returns a number below a limit of at most 256.
func (d *dice) n(below int) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.bytes) == 0 {
		return d.rest.IntN(below)
	}
	n := int(d.bytes[0]) % below
	d.bytes = d.bytes[1:]
	return n
}

// once is true once in this many calls.
func (d *dice) once(in int) bool { return d.n(in) == in-1 }

// text returns up to this many bytes.
func (d *dice) text(most int) string {
	b := make([]byte, d.n(most+1))
	for i := range b {
		b[i] = byte(d.n(256))
	}
	return string(b)
}

func pick[T any](d *dice, list ...T) T { return list[d.n(len(list))] }
