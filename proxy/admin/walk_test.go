package admin

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/semaphore"

	"github.com/cachalot-registry/cachalot/bounds"
	"github.com/cachalot-registry/cachalot/proxy"
	"github.com/cachalot-registry/cachalot/proxy/image"
	ut "github.com/cachalot-registry/cachalot/upstream/upstreamtest"
)

// warmOne warms one image, and returns the image's event and the last one.
func (a *admin) warmOne(name string, platforms ...string) (image, end WarmEvent) {
	a.t.Helper()
	body, err := json.Marshal(WarmRequest{Images: []string{name}, Platforms: platforms})
	if err != nil {
		a.t.Fatal(err)
	}
	req, err := http.NewRequestWithContext(a.t.Context(), http.MethodPost, a.server.URL+apiRoot+"warm", bytes.NewReader(body))
	if err != nil {
		a.t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := a.server.Client().Do(req)
	if err != nil {
		a.t.Fatal(err)
	}
	defer resp.Body.Close()
	next := lines(a.t, resp.Body)
	for e, ok := next(); ok; e, ok = next() {
		switch e.Event {
		case "image":
			image = e
		case "end":
			end = e
		}
	}
	return image, end
}

// TestWalk_EachOnce: content that is named many times is visited, fetched and counted once.
func TestWalk_EachOnce(t *testing.T) {
	t.Parallel()
	up := ut.New(t, ut.Options{})
	image := ut.NewImage(1, 20_000)
	up.AddBlob("library/app", image.Blobs()...)
	all := []ut.Content{image.Manifest}
	for range 4 { // each index names all manifests below it, 2000 times in all
		var names []ocispec.Descriptor
		for i := range 2000 {
			d := all[len(all)-1-i%len(all)].Descriptor
			if d.MediaType == ocispec.MediaTypeImageManifest {
				d.Platform = &ocispec.Platform{OS: "linux", Architecture: "amd64"}
			}
			names = append(names, d)
		}
		all = append(all, ut.Index(names...))
	}
	up.AddManifests("library/app", "1", all...)
	m := newMirror(t, nil, registry(t, "docker.io", up.URL))
	a := newAdmin(t, m, nil, nil)
	var want int64
	for _, c := range append(all, image.Blobs()...) {
		want += c.Size
	}
	var end WarmEvent
	a.post("warm", `{"images": ["app:1"], "platforms": ["linux/amd64"]}`, http.StatusOK, &end)
	if end.ImagesFailed != 0 || end.Blobs != 7 || end.BlobsFetched != 7 || end.Size != want || end.Fetched != want {
		t.Errorf("%+v, want 7 blobs of %d bytes", end, want)
	}
	up.WantCounts(t, map[ut.Op]int{ut.HeadManifest: 1, ut.GetManifest: 5, ut.GetBlob: 2})

	var answer ImageAnswer
	a.get("image?name=app:1", &answer)
	if !answer.Complete || answer.Truncated || len(answer.Manifests) != 1 || answer.Size != want || answer.StoredSize != want || answer.Manifests[0].Platform != "linux/amd64" {
		t.Errorf("%+v, want one manifest and %d bytes", answer, want)
	}
	var did PurgeAnswer
	a.post("purge", `{"image": "app:1"}`, http.StatusOK, &did)
	if did.Blobs != 7 || did.Truncated {
		t.Errorf("%+v", did)
	}
}

// TestWalk_Bounds: an image that exceeds a bound is visited in part, and not warmed.
func TestWalk_Bounds(t *testing.T) {
	t.Parallel()
	nested := func(deep int) []ut.Content {
		all := []ut.Content{ut.Manifest(0)}
		for range deep {
			all = append(all, ut.Index(all[len(all)-1].Descriptor))
		}
		return all
	}
	under := func(manifests ...ut.Content) []ut.Content {
		var names []ocispec.Descriptor
		for _, m := range manifests {
			names = append(names, m.Descriptor)
		}
		return append(manifests, ut.Index(names...))
	}
	many := func(n int, one func(n int) ut.Content) (all []ut.Content) {
		for i := range n {
			all = append(all, one(i))
		}
		return all
	}
	small := func(n int) ut.Content { return ut.Manifest(n) }
	for name, tt := range map[string]struct {
		image     []ut.Content // the last one is its index
		keep      int          // pull only this many, from the end; 0: all
		bound     string       // "": none
		manifests int          // in the response
		gets      int          // manifest GETs of a warming
	}{
		"as deep as may be":  {image: nested(4), manifests: 1},
		"deep":               {image: nested(5), bound: "indexes in indexes, more than 4 deep", gets: 5},
		"as many as may be":  {image: under(many(999, small)...), keep: 1, manifests: 1000 - 1, gets: -1},
		"many manifests":     {image: under(many(1000, small)...), keep: 1, bound: "more than 1000 manifests", manifests: 1000 - 1, gets: 1000},
		"wide":               {image: []ut.Content{ut.Index(ut.Layers(0, 20_000)...)}, bound: "more than 10000 descriptors in a manifest", manifests: 1000 - 1, gets: 1},
		"many layers in one": {image: []ut.Content{ut.Manifest(0, ut.Layers(0, image.MaxDescriptors)...)}, bound: "more than 10000 descriptors in a manifest", manifests: 1, gets: 1},
		"many layers":        {image: under(many(6, func(n int) ut.Content { return ut.Manifest(n, ut.Layers(n*9000, 6000)...) })...), bound: "more than 20000 descriptors", manifests: 4, gets: 5},
		"large manifests":    {image: under(many(20, func(n int) ut.Content { return ut.Padded(n, 4<<20) })...), keep: 1, bound: "more than 64 MiB of manifests", manifests: 16, gets: 17},
	} {
		t.Run(name, func(t *testing.T) { // not parallel: each one takes much memory
			up := ut.New(t, ut.Options{})
			up.AddManifests("library/app", "1", tt.image...)
			unhurried := func(c *proxy.Config) { c.Memory = nil } // with Memory, the walk pauses after each large manifest
			m := newMirror(t, unhurried, registry(t, "docker.io", up.URL))
			a := newAdmin(t, m, nil, nil)
			index := tt.image[len(tt.image)-1]

			if tt.bound != "" {
				warmed, end := a.warmOne("app:1", "all")
				if !strings.Contains(warmed.Error, tt.bound) || !strings.Contains(warmed.Error, "name fewer platforms") || end.ImagesFailed != 1 {
					t.Errorf("warming failed with %q, want %q", warmed.Error, tt.bound)
				}
				up.WantCounts(t, map[ut.Op]int{ut.HeadManifest: 1, ut.GetManifest: tt.gets})
			} else if tt.gets >= 0 {
				if warmed, end := a.warmOne("app:1", "all"); warmed.Error != "" || end.ImagesFailed != 0 {
					t.Errorf("warming failed with %q", warmed.Error)
				}
			}
			if tt.keep > 0 {
				tt.image = tt.image[len(tt.image)-tt.keep:]
			}
			m.keep("library/app", tt.image...)
			m.want(m.get("/v2/library/app/manifests/1"), index)
			var answer ImageAnswer
			a.get("image?name=app:1", &answer)
			if answer.Truncated != (tt.bound != "") || len(answer.Manifests) != tt.manifests || answer.Truncated && answer.Complete {
				t.Errorf("truncated %v, complete %v, %d manifests, want %d", answer.Truncated, answer.Complete, len(answer.Manifests), tt.manifests)
			}
			var did PurgeAnswer
			a.post("purge", `{"image": "app:1"}`, http.StatusOK, &did)
			if did.Tags != 1 || did.Blobs == 0 || did.Truncated != (tt.bound != "") {
				t.Errorf("purged %d tags and %d blobs, truncated %v", did.Tags, did.Blobs, did.Truncated)
			}
		})
	}
}

// bareAPI is the admin API on a server that ends with running. begun and ended get a value
// for each request.
func bareAPI(t *testing.T, m *mirror, running context.Context, begun, ended chan struct{}) (*api, *httptest.Server) {
	t.Helper()
	admin := Config{
		Loopback: true, Log: slog.New(slog.DiscardHandler), Token: func() (string, string, error) { return "admin.token", "", nil },
		Current: func() (*proxy.Proxy, func()) { begun <- struct{}{}; return m.proxy, func() { ended <- struct{}{} } }, Pins: m.pins,
	}
	a := newAPI(admin, newGuard(admin))
	server := httptest.NewUnstartedServer(a)
	server.Config.BaseContext = func(net.Listener) context.Context { return running }
	server.Start()
	t.Cleanup(server.Close)
	return a, server
}

// walkRequests are the requests that walk an image, and the semaphores that they wait for.
func walkRequests() map[string]walkRequest {
	return map[string]walkRequest{
		"image": {http.MethodGet, "image?name=app:1", "", func(a *api) *semaphore.Weighted { return a.looking }, maxLooking, maxLooking},
		"purge": {http.MethodPost, "purge", `{"image": "app:1", "dry_run": true}`, func(a *api) *semaphore.Weighted { return a.purging }, maxPurging, maxPurging},
		"warm":  {http.MethodPost, "warm", `{"images": ["app:1", "app:1", "app:1", "app:1"]}`, func(a *api) *semaphore.Weighted { return a.images }, maxWarmImages, maxWarmImages / 4},
	}
}

type walkRequest struct {
	method, path, body string
	turns              func(*api) *semaphore.Weighted
	most               int64 // all turns of the semaphore
	fill               int   // the number of requests that takes all turns
}

// send sends the request and returns the status, or 0 if there is no response.
func (r walkRequest) send(ctx context.Context, server *httptest.Server) int {
	req, err := http.NewRequestWithContext(ctx, r.method, server.URL+apiRoot+r.path, strings.NewReader(r.body))
	if err != nil {
		panic(err)
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := server.Client().Do(req)
	if err != nil {
		return 0
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		return 0
	}
	return resp.StatusCode
}

// addHeavy adds an image with an index so large that its parser waits for a processor.
func addHeavy(up *ut.Registry) ut.Image {
	image := up.AddImage("library/app", "1", ut.NewImage(1, 20_000))
	image.Index = ut.NewContent(image.Index.MediaType, append(bytes.Clone(image.Index.Bytes), bytes.Repeat([]byte(" "), 64<<10)...))
	up.AddManifest("library/app", image.Index, "1")
	return image
}

// TestWalk_Leave: a waiting or running walk ends when its caller leaves or the server stops.
func TestWalk_Leave(t *testing.T) {
	t.Parallel()
	up := ut.New(t, ut.Options{})
	image := addHeavy(up)
	m := newMirror(t, nil, registry(t, "docker.io", up.URL))
	m.pullAll("library/app", "1", image)
	for name, r := range walkRequests() {
		for _, at := range []string{"in the queue", "in the walk"} {
			for _, ends := range []string{"caller", "server"} {
				t.Run(fmt.Sprintf("%s, %s, %s", name, at, ends), func(t *testing.T) { // not parallel: each one makes others wait
					begun, ended := make(chan struct{}, 1), make(chan struct{}, 1)
					running, stop := context.WithCancel(t.Context())
					asking, leave := context.WithCancel(t.Context())
					a, server := bareAPI(t, m, running, begun, ended)
					if at == "in the walk" {
						defer work(t, m.memory)()
					} else if err := r.turns(a).Acquire(t.Context(), r.most); err != nil {
						t.Fatal(err)
					} else {
						defer r.turns(a).Release(r.most)
					}
					answered := make(chan int, 1)
					go func() { answered <- r.send(asking, server) }()
					<-begun
					if ends == "caller" {
						leave()
					} else {
						stop()
					}
					<-ended // else the test hangs here
					stop()
					leave()
					<-answered
				})
			}
		}
	}
}

// work keeps half of the processors busy, until end is called.
func work(t *testing.T, memory *bounds.Memory) (end func()) {
	t.Helper()
	release, begun := make(chan struct{}), make(chan struct{})
	var working sync.WaitGroup
	for range max(1, runtime.GOMAXPROCS(0)/2) {
		working.Go(func() {
			if err := memory.Work(t.Context(), -1, func() { begun <- struct{}{}; <-release }); err != nil {
				t.Error(err)
			}
		})
		<-begun
	}
	return func() { close(release); working.Wait() }
}

// TestWalk_Turns: a bounded number of walks run at a time; the others run after them.
func TestWalk_Turns(t *testing.T) {
	t.Parallel()
	up := ut.New(t, ut.Options{})
	image := addHeavy(up)
	m := newMirror(t, nil, registry(t, "docker.io", up.URL))
	m.pullAll("library/app", "1", image)
	for name, r := range walkRequests() {
		t.Run(name, func(t *testing.T) { // not parallel: each one makes others wait
			const more = 3
			begun, ended := make(chan struct{}, 100), make(chan struct{}, 100)
			a, server := bareAPI(t, m, t.Context(), begun, ended)
			rest := work(t, m.memory)
			answered := make(chan int, r.fill+more)
			for range r.fill + more {
				go func() { answered <- r.send(t.Context(), server) }()
				<-begun
			}
			limit := time.Now().Add(time.Minute)
			for r.turns(a).TryAcquire(1) {
				r.turns(a).Release(1)
				if time.Now().After(limit) {
					t.Error("it takes no turns")
					break
				}
				runtime.Gosched()
			}
			rest()
			for range r.fill + more {
				if status := <-answered; status != http.StatusOK {
					t.Errorf("status %d", status)
				}
			}
			if err := r.turns(a).Acquire(t.Context(), r.most); err != nil { // else the test hangs here
				t.Error(err)
			}
		})
	}
}

// TestImage_Sizes: a blob counts once in each manifest and once in the image. A descriptor
// may claim any size.
func TestImage_Sizes(t *testing.T) {
	t.Parallel()
	up := ut.New(t, ut.Options{})
	shared := ut.NewContent(ocispec.MediaTypeImageLayer, ut.Random(1, 5000))
	up.AddBlob("library/app", shared)
	claim := func(d digest.Digest, size int64) ocispec.Descriptor {
		return ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: d, Size: size}
	}
	one := ut.Manifest(1, shared.Descriptor, shared.Descriptor)
	two := ut.Manifest(2, shared.Descriptor, claim(digest.FromString("absent"), 70))
	odd := ut.Manifest(3, claim("sha256:short", 10))
	vast := ut.Manifest(4, claim(digest.FromString("x"), math.MaxInt64), claim(digest.FromString("y"), math.MaxInt64), claim(digest.FromString("z"), -5))
	index := ut.Index(one.Descriptor, two.Descriptor)
	all := ut.Index(one.Descriptor, two.Descriptor, one.Descriptor, claim("sha256:none", 5), odd.Descriptor)
	up.AddManifests("library/app", "1", one, two, odd, index)
	up.AddManifests("library/app", "all", all)
	up.AddManifests("library/app", "vast", vast)
	m := newMirror(t, nil, registry(t, "docker.io", up.URL))
	a := newAdmin(t, m, nil, nil)
	m.keep("library/app", one, two, odd, index, all, vast)
	m.want(m.get("/v2/library/app/blobs/"+shared.Digest.String()), shared)
	for _, tag := range []string{"1", "all", "vast"} {
		m.get("/v2/library/app/manifests/" + tag)
	}
	m.settle()

	config := ut.Empty().Size
	var answer ImageAnswer
	a.get("image?name=app:1", &answer)
	if got := answer.Manifests; len(got) != 2 || got[0].Size != one.Size+shared.Size+config || got[1].Size != two.Size+shared.Size+config+70 || len(got[0].Layers) != 2 {
		t.Errorf("%+v", got)
	}
	if want := index.Size + one.Size + two.Size + shared.Size; answer.StoredSize != want || answer.Size != want+config+70 {
		t.Errorf("%d bytes of %d, want %d of %d", answer.StoredSize, answer.Size, want, want+config+70)
	}
	a.get("image?name=app:all", &answer)
	if answer.Complete || len(answer.Manifests) != 3 || answer.Manifests[2].Complete || len(answer.Manifests[2].Layers) != 0 {
		t.Errorf("%+v", answer)
	}
	a.get("image?name=app:vast", &answer)
	if answer.Size != math.MaxInt64 || answer.Manifests[0].Size != math.MaxInt64 || answer.StoredSize != vast.Size {
		t.Errorf("%+v", answer)
	}
}

// TestImage_Downloading: the admin API does not wait for a manifest that is in download.
func TestImage_Downloading(t *testing.T) {
	t.Parallel()
	for name, fault := range map[string]func(release <-chan struct{}) ut.Fault{
		"asked for": ut.Pause,
		"trickling": func(release <-chan struct{}) ut.Fault { return ut.StallAfter(10, release) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			up := ut.New(t, ut.Options{})
			image := up.AddImage("library/app", "1", ut.NewImage(1, 20_000))
			m := newMirror(t, nil, registry(t, "docker.io", up.URL))
			a := newAdmin(t, m, nil, nil)
			m.want(m.get("/v2/library/app/manifests/1"), image.Index)
			m.settle()
			release, arrived := make(chan struct{}), make(chan struct{}, 10)
			up.Fault(ut.Match{Op: ut.GetManifest, Reference: image.Manifest.Digest.String()}, ut.Arrived(arrived), fault(release))
			pulled := make(chan reply, 1)
			go func() { pulled <- m.get("/v2/library/app/manifests/" + image.Manifest.Digest.String()) }()
			<-arrived
			var answer ImageAnswer
			a.get("image?name=app:1", &answer)
			if len(answer.Manifests) != 1 || answer.Manifests[0].Stored || answer.Complete {
				t.Errorf("%+v", answer)
			}
			close(release)
			m.want(<-pulled, image.Manifest)
		})
	}
}

// TestWarm_Platforms: a manifest for several platforms is fetched once, and reported for
// each requested platform. A nested index may have none of them.
func TestWarm_Platforms(t *testing.T) {
	t.Parallel()
	up := ut.New(t, ut.Options{})
	arm := ut.Manifest(1)
	of := func(d ocispec.Descriptor, variant string) ocispec.Descriptor {
		d.Platform = &ocispec.Platform{OS: "linux", Architecture: "arm", Variant: variant}
		return d
	}
	other := of(ut.Manifest(2).Descriptor, "v8")
	inner := ut.Index(other)
	index := ut.Index(of(arm.Descriptor, "v5"), of(arm.Descriptor, "v6"), of(arm.Descriptor, "v7"), inner.Descriptor)
	up.AddManifests("library/app", "1", arm, inner, index)
	m := newMirror(t, nil, registry(t, "docker.io", up.URL))
	a := newAdmin(t, m, nil, nil)
	warmed, _ := a.warmOne("app:1", "linux/arm/v6", "linux/arm/v7")
	if warmed.Error != "" || !slices.Equal(warmed.Platforms, []string{"linux/arm/v6", "linux/arm/v7"}) {
		t.Errorf("%+v", warmed)
	}
	up.WantCounts(t, map[ut.Op]int{ut.HeadManifest: 1, ut.GetManifest: 3, ut.GetBlob: 1})
	if warmed, _ = a.warmOne("app:1", "linux/s390x"); warmed.Error != "no manifest for linux/s390x; the image has linux/arm/v5, linux/arm/v6, linux/arm/v7, linux/arm/v8" {
		t.Error(warmed.Error)
	}
}
