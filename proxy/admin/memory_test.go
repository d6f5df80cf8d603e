package admin

import (
	"net/http"
	"runtime"
	"runtime/metrics"
	"strings"
	"sync"
	"testing"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/cachalot-registry/cachalot/proxy/image"
	ut "github.com/cachalot-registry/cachalot/upstream/upstreamtest"
)

// heapPeak returns the largest growth of the heap while f runs.
func heapPeak(t *testing.T, f func()) (bytes int64) {
	t.Helper()
	sample := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}}
	now := func() int64 {
		metrics.Read(sample)
		return int64(sample[0].Value.Uint64())
	}
	before := now()
	done := make(chan struct{})
	var watching sync.WaitGroup
	watching.Go(func() {
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-done:
				return
			case <-tick.C:
				bytes = max(bytes, now()-before)
			}
		}
	})
	f()
	close(done)
	watching.Wait()
	return bytes
}

// TestWalk_Memory: the largest number of callers at a time request the largest response,
// and the memory stays below a limit. Further callers wait: TestWalk_Turns.
//
//nolint:paralleltest // it measures the process
func TestWalk_Memory(t *testing.T) {
	const callers, limit = maxLooking, 200 << 20
	up := ut.New(t, ut.Options{})
	var names []ocispec.Descriptor
	for i := range 8 {
		list := ut.Layers(i*image.MaxDescriptors, 9000)
		for n := range list {
			list[n].Digest = list[0].Digest // one digest, so that the index is read once
			list[n].MediaType = "application/" + strings.Repeat("x", image.MaxMediaType-len("application/"))
		}
		manifest := ut.Manifest(i, list...)
		up.AddManifests("library/app", "", manifest)
		names = append(names, manifest.Descriptor)
	}
	up.AddManifests("library/app", "1", ut.Index(names...))
	m := newMirror(t, nil, registry(t, "docker.io", up.URL))
	if a := m.get("/v2/library/app/manifests/1"); a.status != http.StatusOK {
		t.Fatal(a.status)
	}
	for _, d := range names {
		if a := m.get("/v2/library/app/manifests/" + d.Digest.String()); a.status != http.StatusOK {
			t.Fatal(a.status)
		}
	}
	m.settle()
	begun, ended := make(chan struct{}, callers), make(chan struct{}, callers)
	_, server := bareAPI(t, m, t.Context(), begun, ended)
	peak := heapPeak(t, func() {
		var asking sync.WaitGroup
		for range callers {
			asking.Go(func() {
				if status := walkRequests()["image"].send(t.Context(), server); status != http.StatusOK {
					t.Errorf("status %d", status)
				}
			})
		}
		asking.Wait()
	})
	t.Logf("%d callers took %d MiB", callers, peak>>20)
	if peak > limit {
		t.Errorf("%d callers took %d MiB, want no more than %d", callers, peak>>20, limit>>20)
	}
}

// TestWarm_Memory: a large manifest that is named 500 times is fetched once. Only its
// descriptors stay in memory.
//
//nolint:paralleltest // it measures the process
func TestWarm_Memory(t *testing.T) {
	const limit = 100 << 20
	up := ut.New(t, ut.Options{})
	large := ut.Padded(0, 4<<20)
	large.Platform = &ocispec.Platform{OS: "linux", Architecture: "amd64"}
	names := make([]ocispec.Descriptor, 500)
	for i := range names {
		names[i] = large.Descriptor
	}
	index := ut.Index(names...)
	up.AddManifests("library/app", "1", large, index)
	m := newMirror(t, nil, registry(t, "docker.io", up.URL))
	a := newAdmin(t, m, nil, nil)
	peak := heapPeak(t, func() {
		if image, end := a.warmOne("app:1", "linux/amd64"); image.Error != "" || end.BlobsFetched != 2 || end.Size != large.Size+index.Size {
			t.Errorf("%+v %+v", image, end)
		}
	})
	up.WantCounts(t, map[ut.Op]int{ut.HeadManifest: 1, ut.GetManifest: 2})
	t.Logf("it took %d MiB", peak>>20)
	if peak > limit {
		t.Errorf("it took %d MiB, want no more than %d", peak>>20, limit>>20)
	}
}

// TestWarm_Goroutines: a warming starts only as many blobs as it downloads at a time.
//
//nolint:paralleltest // it measures the process
func TestWarm_Goroutines(t *testing.T) {
	const blobs = 500
	up := ut.New(t, ut.Options{})
	var list []ocispec.Descriptor
	for n := range blobs {
		blob := ut.NewContent(ocispec.MediaTypeImageLayer, ut.Random(uint64(n), 100))
		up.AddBlob("library/app", blob)
		list = append(list, blob.Descriptor)
	}
	up.AddManifests("library/app", "1", ut.Manifest(0, list...))
	m := newMirror(t, nil, registry(t, "docker.io", up.URL))
	a := newAdmin(t, m, nil, nil)
	arrived := make(chan struct{})
	up.Fault(ut.Match{Op: ut.GetBlob}, ut.Arrived(arrived))
	before := runtime.NumGoroutine()
	most := make(chan int, 1)
	go func() {
		peak := 0
		for range blobs + 1 { // the blobs and the config
			peak = max(peak, runtime.NumGoroutine())
			<-arrived
		}
		most <- peak
	}()
	image, end := a.warmOne("app:1", "all")
	if image.Error != "" || end.BlobsFetched != blobs+2 {
		t.Errorf("%+v %+v, want %d blobs", image, end, blobs+2)
	}
	if n := <-most; n-before > blobs/2 {
		t.Errorf("%d goroutines, and %d before", n, before)
	}
}
