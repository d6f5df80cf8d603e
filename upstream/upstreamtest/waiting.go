package upstreamtest

import (
	"flag"
	"runtime"
	"strconv"
)

// Waiting runs twice as many of a package's tests at once as the default, because they mostly
// wait for networks and disks. -parallel overrides it.
type Waiting struct{ Tests interface{ Run() int } }

// Run implements the interface of [testing.M], for a TestMain.
func (w Waiting) Run() int {
	flag.Parse()
	if parallel := flag.Lookup("test.parallel"); parallel.Value.String() == parallel.DefValue {
		if err := parallel.Value.Set(strconv.Itoa(2 * runtime.GOMAXPROCS(0))); err != nil {
			panic(err)
		}
	}
	return w.Tests.Run()
}
