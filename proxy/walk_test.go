package proxy

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
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
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/semaphore"

	"github.com/cachalot-registry/cachalot/bounds"
	"github.com/cachalot-registry/cachalot/storage"
	ut "github.com/cachalot-registry/cachalot/upstream/upstreamtest"
)

// indexOf is an index of manifests.
func indexOf(manifests ...ocispec.Descriptor) ut.Content {
	b, err := json.Marshal(ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: manifests})
	if err != nil {
		panic(err)
	}
	return ut.NewContent(ocispec.MediaTypeImageIndex, b)
}

// manifestOf is a manifest of layers; what is unlike another's n is another manifest.
func manifestOf(n int, layers ...ocispec.Descriptor) ut.Content {
	b, err := json.Marshal(ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest, Config: ocispec.DescriptorEmptyJSON,
		Layers: layers, Annotations: map[string]string{"n": fmt.Sprint(n)},
	})
	if err != nil {
		panic(err)
	}
	return ut.NewContent(ocispec.MediaTypeImageManifest, b)
}

// padded is a manifest of size bytes that names nothing.
func padded(n, size int) ut.Content {
	begin := fmt.Sprintf(`{"mediaType":%q,"annotations":{"n":"%d","x":"`, ocispec.MediaTypeImageManifest, n)
	return ut.NewContent(ocispec.MediaTypeImageManifest, []byte(begin+strings.Repeat("x", size-len(begin)-len(`"}}`))+`"}}`))
}

// layers are n blobs that are nowhere.
func layers(from, n int) []ocispec.Descriptor {
	list := make([]ocispec.Descriptor, n)
	for i := range list {
		list[i] = ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: digest.FromString(fmt.Sprint(from + i)), Size: 10}
	}
	return list
}

// empty is the config of manifestOf.
func empty() ut.Content {
	return ut.NewContent(ocispec.MediaTypeEmptyJSON, ocispec.DescriptorEmptyJSON.Data)
}

// add makes manifests readable, the last one by a tag.
func add(up *ut.Registry, repo, tag string, manifests ...ut.Content) {
	up.AddBlob(repo, empty())
	for i, m := range manifests {
		if i == len(manifests)-1 {
			up.AddManifest(repo, m, tag)
		} else {
			up.AddManifest(repo, m)
		}
	}
}

// keep pulls manifests by their digests, as a client does.
func (m *mirror) keep(repo string, manifests ...ut.Content) {
	m.t.Helper()
	for _, one := range manifests {
		if a := m.get("/v2/" + repo + "/manifests/" + one.Digest.String()); a.status != http.StatusOK {
			m.t.Fatalf("%d %s", a.status, a.body)
		}
	}
	m.settle()
}

// warmOne warms one image, and returns what became of it and of all.
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

// TestWalk_EachOnce: what is named again and again is looked at, fetched and counted once.
func TestWalk_EachOnce(t *testing.T) {
	t.Parallel()
	up := ut.New(t, ut.Options{})
	image := ut.NewImage(1, 20_000)
	up.AddBlob("library/app", image.Blobs()...)
	all := []ut.Content{image.Manifest}
	for range 4 { // each names the one before, and all those below, 2000 times
		var names []ocispec.Descriptor
		for i := range 2000 {
			d := all[len(all)-1-i%len(all)].Descriptor
			if d.MediaType == ocispec.MediaTypeImageManifest {
				d.Platform = &ocispec.Platform{OS: "linux", Architecture: "amd64"}
			}
			names = append(names, d)
		}
		all = append(all, indexOf(names...))
	}
	add(up, "library/app", "1", all...)
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
	counts(t, up, map[ut.Op]int{ut.HeadManifest: 1, ut.GetManifest: 5, ut.GetBlob: 2})

	var answer ImageAnswer
	a.get("image?name=app:1", &answer)
	if !answer.Complete || answer.Truncated || len(answer.Manifests) != 1 || answer.Size != want || answer.KeptSize != want || answer.Manifests[0].Platform != "linux/amd64" {
		t.Errorf("%+v, want one manifest and %d bytes", answer, want)
	}
	var did PurgeAnswer
	a.post("purge", `{"image": "app:1"}`, http.StatusOK, &did)
	if did.Blobs != 7 || did.Truncated {
		t.Errorf("%+v", did)
	}
}

// TestWalk_Bounds: an image that exceeds a bound is looked at in part, and not warmed.
func TestWalk_Bounds(t *testing.T) {
	t.Parallel()
	nested := func(deep int) []ut.Content {
		all := []ut.Content{manifestOf(0)}
		for range deep {
			all = append(all, indexOf(all[len(all)-1].Descriptor))
		}
		return all
	}
	under := func(manifests ...ut.Content) []ut.Content {
		var names []ocispec.Descriptor
		for _, m := range manifests {
			names = append(names, m.Descriptor)
		}
		return append(manifests, indexOf(names...))
	}
	many := func(n int, one func(n int) ut.Content) (all []ut.Content) {
		for i := range n {
			all = append(all, one(i))
		}
		return all
	}
	small := func(n int) ut.Content { return manifestOf(n) }
	for name, tt := range map[string]struct {
		image     []ut.Content // the last one is its index
		keep      int          // the last so many of them are pulled; 0: all
		bound     string       // "": none
		manifests int          // in the answer
		gets      int          // of manifests, to warm it
	}{
		"as deep as may be":  {image: nested(4), manifests: 1},
		"deep":               {image: nested(5), bound: "indexes in indexes, more than 4 deep", gets: 5},
		"as many as may be":  {image: under(many(maxWalkManifests-1, small)...), keep: 1, manifests: maxWalkManifests - 1, gets: -1},
		"many manifests":     {image: under(many(maxWalkManifests, small)...), keep: 1, bound: "more than 1000 manifests", manifests: maxWalkManifests - 1, gets: 1000},
		"wide":               {image: []ut.Content{indexOf(layers(0, 20_000)...)}, bound: "more than 10000 descriptors in a manifest", manifests: maxWalkManifests - 1, gets: 1},
		"many layers in one": {image: []ut.Content{manifestOf(0, layers(0, maxDescriptors)...)}, bound: "more than 10000 descriptors in a manifest", manifests: 1, gets: 1},
		"many layers":        {image: under(many(6, func(n int) ut.Content { return manifestOf(n, layers(n*9000, 6000)...) })...), bound: "more than 20000 descriptors", manifests: 4, gets: 5},
		"large manifests":    {image: under(many(20, func(n int) ut.Content { return padded(n, 4<<20) })...), keep: 1, bound: "more than 64 MiB of manifests", manifests: 16, gets: 17},
	} {
		t.Run(name, func(t *testing.T) { // one after the other, for the memory they take
			up := ut.New(t, ut.Options{})
			add(up, "library/app", "1", tt.image...)
			m := newMirror(t, nil, registry(t, "docker.io", up.URL))
			a := newAdmin(t, m, nil, nil)
			index := tt.image[len(tt.image)-1]

			if tt.bound != "" {
				warmed, end := a.warmOne("app:1", "all")
				if !strings.Contains(warmed.Error, tt.bound) || !strings.Contains(warmed.Error, "name fewer platforms") || end.ImagesFailed != 1 {
					t.Errorf("warming failed with %q, want %q", warmed.Error, tt.bound)
				}
				counts(t, up, map[ut.Op]int{ut.HeadManifest: 1, ut.GetManifest: tt.gets})
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

// bareAPI is the admin API on a server that ends with running. begun and ended are told
// of each request.
func bareAPI(t *testing.T, m *mirror, running context.Context, begun, ended chan struct{}) (*api, *httptest.Server) {
	t.Helper()
	admin := AdminConfig{
		Loopback: true, Log: slog.New(slog.DiscardHandler), Token: func() (string, string, error) { return "admin.token", "", nil },
		Current: func() (*Proxy, func()) { begun <- struct{}{}; return m.proxy, func() { ended <- struct{}{} } },
	}
	a := newAPI(admin, newGuard(admin))
	server := httptest.NewUnstartedServer(a)
	server.Config.BaseContext = func(net.Listener) context.Context { return running }
	server.Start()
	t.Cleanup(server.Close)
	return a, server
}

// walkRequests are those that walk what an image names, and what they wait for first.
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
	most               int64 // turns
	fill               int   // so many requests take all of them
}

// send makes the request, and returns its status; 0: there was no answer.
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

// addHeavy adds an image whose index takes a processor's turn to read.
func addHeavy(up *ut.Registry) ut.Image {
	image := up.AddImage("library/app", "1", ut.NewImage(1, 20_000))
	image.Index = ut.NewContent(image.Index.MediaType, append(bytes.Clone(image.Index.Bytes), bytes.Repeat([]byte(" "), 64<<10)...))
	up.AddManifest("library/app", image.Index, "1")
	return image
}

// TestWalk_Leave: a walk ends with its caller and with the server, wherever it is.
func TestWalk_Leave(t *testing.T) {
	t.Parallel()
	up := ut.New(t, ut.Options{})
	image := addHeavy(up)
	m := newMirror(t, nil, registry(t, "docker.io", up.URL))
	m.pullAll("library/app", "1", image)
	for name, r := range walkRequests() {
		for _, at := range []string{"in the queue", "in the walk"} {
			for _, ends := range []string{"caller", "server"} {
				t.Run(fmt.Sprintf("%s, %s, %s", name, at, ends), func(t *testing.T) { // one after the other, for they keep others waiting
					begun, ended := make(chan struct{}, 1), make(chan struct{}, 1)
					running, stop := context.WithCancel(t.Context())
					asking, leave := context.WithCancel(t.Context())
					a, server := bareAPI(t, m, running, begun, ended)
					if at == "in the walk" {
						defer work(t, m.proxy.reader.memory)()
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
					<-ended // or else never
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

// TestWalk_Turns: so many walks go on at once, and others after them.
func TestWalk_Turns(t *testing.T) {
	t.Parallel()
	up := ut.New(t, ut.Options{})
	image := addHeavy(up)
	m := newMirror(t, nil, registry(t, "docker.io", up.URL))
	m.pullAll("library/app", "1", image)
	for name, r := range walkRequests() {
		t.Run(name, func(t *testing.T) { // one after the other, for they keep others waiting
			const more = 3
			begun, ended := make(chan struct{}, 100), make(chan struct{}, 100)
			a, server := bareAPI(t, m, t.Context(), begun, ended)
			rest := work(t, m.proxy.reader.memory)
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
			if err := r.turns(a).Acquire(t.Context(), r.most); err != nil { // or else never
				t.Error(err)
			}
		})
	}
}

// TestWalk_LeaveBetween: no manifest is opened for a caller who has left.
func TestWalk_LeaveBetween(t *testing.T) {
	t.Parallel()
	up := ut.New(t, ut.Options{})
	index := indexOf(layers(0, 100)...)
	add(up, "library/app", "1", index)
	m := newMirror(t, nil, registry(t, "docker.io", up.URL))
	m.keep("library/app", index)
	ctx, leave := context.WithCancelCause(t.Context())
	gone := errors.New("gone")
	opened := 0
	w := m.proxy.keptWalk("docker.io", "library/app")
	open := w.open
	w.open = func(ctx context.Context, d descriptor) (*storage.Blob, error) {
		if opened++; opened == 5 {
			leave(gone)
		}
		return open(ctx, d)
	}
	if err := w.run(ctx, descriptor{Digest: index.Digest}, func(*node) error { return nil }); !errors.Is(err, gone) || opened != 5 {
		t.Errorf("%v after %d manifests", err, opened)
	}
}

// TestImage_Sizes: a blob counts once in each manifest and once in the image. What is
// claimed may be anything.
func TestImage_Sizes(t *testing.T) {
	t.Parallel()
	up := ut.New(t, ut.Options{})
	shared := ut.NewContent(ocispec.MediaTypeImageLayer, ut.Random(1, 5000))
	up.AddBlob("library/app", shared)
	claim := func(d digest.Digest, size int64) ocispec.Descriptor {
		return ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: d, Size: size}
	}
	one := manifestOf(1, shared.Descriptor, shared.Descriptor)
	two := manifestOf(2, shared.Descriptor, claim(digest.FromString("absent"), 70))
	odd := manifestOf(3, claim("sha256:short", 10))
	vast := manifestOf(4, claim(digest.FromString("x"), math.MaxInt64), claim(digest.FromString("y"), math.MaxInt64), claim(digest.FromString("z"), -5))
	index := indexOf(one.Descriptor, two.Descriptor)
	all := indexOf(one.Descriptor, two.Descriptor, one.Descriptor, claim("sha256:none", 5), odd.Descriptor)
	add(up, "library/app", "1", one, two, odd, index)
	add(up, "library/app", "all", all)
	add(up, "library/app", "vast", vast)
	m := newMirror(t, nil, registry(t, "docker.io", up.URL))
	a := newAdmin(t, m, nil, nil)
	m.keep("library/app", one, two, odd, index, all, vast)
	m.want(m.get("/v2/library/app/blobs/"+shared.Digest.String()), shared)
	for _, tag := range []string{"1", "all", "vast"} {
		m.get("/v2/library/app/manifests/" + tag)
	}
	m.settle()

	config := empty().Size
	var answer ImageAnswer
	a.get("image?name=app:1", &answer)
	if got := answer.Manifests; len(got) != 2 || got[0].Size != one.Size+shared.Size+config || got[1].Size != two.Size+shared.Size+config+70 || len(got[0].Layers) != 2 {
		t.Errorf("%+v", got)
	}
	if want := index.Size + one.Size + two.Size + shared.Size; answer.KeptSize != want || answer.Size != want+config+70 {
		t.Errorf("%d bytes of %d, want %d of %d", answer.KeptSize, answer.Size, want, want+config+70)
	}
	a.get("image?name=app:all", &answer)
	if answer.Complete || len(answer.Manifests) != 3 || answer.Manifests[2].Complete || len(answer.Manifests[2].Layers) != 0 {
		t.Errorf("%+v", answer)
	}
	a.get("image?name=app:vast", &answer)
	if answer.Size != math.MaxInt64 || answer.Manifests[0].Size != math.MaxInt64 || answer.KeptSize != vast.Size {
		t.Errorf("%+v", answer)
	}
}

// TestImage_Downloading: a manifest that is on its way keeps no one waiting.
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
			if len(answer.Manifests) != 1 || answer.Manifests[0].Kept || answer.Complete {
				t.Errorf("%+v", answer)
			}
			close(release)
			m.want(<-pulled, image.Manifest)
		})
	}
}

// TestWarm_Platforms: a manifest for several platforms is fetched once, and told of for
// each that was wanted. An index in the index may have nothing for them.
func TestWarm_Platforms(t *testing.T) {
	t.Parallel()
	up := ut.New(t, ut.Options{})
	arm := manifestOf(1)
	of := func(d ocispec.Descriptor, variant string) ocispec.Descriptor {
		d.Platform = &ocispec.Platform{OS: "linux", Architecture: "arm", Variant: variant}
		return d
	}
	other := of(manifestOf(2).Descriptor, "v8")
	inner := indexOf(other)
	index := indexOf(of(arm.Descriptor, "v5"), of(arm.Descriptor, "v6"), of(arm.Descriptor, "v7"), inner.Descriptor)
	add(up, "library/app", "1", arm, inner, index)
	m := newMirror(t, nil, registry(t, "docker.io", up.URL))
	a := newAdmin(t, m, nil, nil)
	warmed, _ := a.warmOne("app:1", "linux/arm/v6", "linux/arm/v7")
	if warmed.Error != "" || !slices.Equal(warmed.Platforms, []string{"linux/arm/v6", "linux/arm/v7"}) {
		t.Errorf("%+v", warmed)
	}
	counts(t, up, map[ut.Op]int{ut.HeadManifest: 1, ut.GetManifest: 3, ut.GetBlob: 1})
	if warmed, _ = a.warmOne("app:1", "linux/s390x"); warmed.Error != "not for linux/s390x; there is linux/arm/v5, linux/arm/v6, linux/arm/v7, linux/arm/v8" {
		t.Error(warmed.Error)
	}
}
