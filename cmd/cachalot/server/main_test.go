package server

import (
	"testing"

	"go.uber.org/goleak"

	"github.com/cachalot-registry/cachalot/upstream/upstreamtest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(upstreamtest.Waiting{Tests: m}) }
