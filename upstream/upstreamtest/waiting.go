package upstreamtest

import (
	"flag"
	"runtime"
	"strconv"
)

// Waiting runs a package's tests, which wait for their network and disks more than
// they compute: twice as many at once as by default. -parallel says otherwise.
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
