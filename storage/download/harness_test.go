package download

import (
	"math/rand/v2"
	"testing"

	"go.uber.org/goleak"

	"github.com/cachalot-registry/cachalot/upstream/upstreamtest"
)

// chunk is what is read at a time.
const chunk = 128 << 10

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(upstreamtest.Waiting{Tests: m})
}

func content(seed uint64, size int) []byte {
	b := make([]byte, size)
	r := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)})
	_, _ = r.Read(b)
	return b
}
