package download

import (
	"testing"

	"go.uber.org/goleak"

	"github.com/cachalot-registry/cachalot/upstream/upstreamtest"
)

// chunk is the size of a read.
const chunk = 128 << 10

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(upstreamtest.Waiting{Tests: m})
}
