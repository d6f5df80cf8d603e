package main

import (
	"fmt"
	"os"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
	"go.uber.org/goleak"

	"github.com/cachalot-registry/cachalot/upstream/upstreamtest"
)

// leakChecked fails a run of tests that leaves goroutines behind.
type leakChecked struct{ m upstreamtest.Waiting }

func (l leakChecked) Run() int {
	code := l.m.Run()
	if code != 0 {
		return code
	}
	if err := goleak.Find(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

func TestMain(m *testing.M) {
	testscript.Main(leakChecked{upstreamtest.Waiting{Tests: m}}, map[string]func(){"cachalot": main})
}

// The command line as users run it.
func TestScripts(t *testing.T) {
	t.Parallel()
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup:               setupScript,
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"exits":    exits,
			"until":    until,
			"upstream": scriptUpstream,
			"replace":  replace,
		},
	})
}
