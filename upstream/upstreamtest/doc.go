// Package upstreamtest holds registries to test against.
//
// New starts a scriptable one, for what a healthy registry never does: it
// keeps content per repository, authenticates with Basic or Bearer, redirects
// to a CDN whose URLs expire, counts and records every request, and goes wrong
// on demand (faults.go lists every way by name):
//
//	up := upstreamtest.New(t, upstreamtest.Options{Auth: upstreamtest.Bearer})
//	img := up.AddImage("library/busybox", "latest", upstreamtest.NewImage(1, 1<<20))
//	up.Fault(upstreamtest.Match{Op: upstreamtest.GetBlob, Times: 1}, upstreamtest.CutAfter(1000))
//	... pull from up.URL ...
//	up.Count(upstreamtest.GetBlob) // 3: a config, a layer, and the layer again
//
// NewRelay records the requests to a registry in another process. Package distributiontest has
// a real one in process.
package upstreamtest
