package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/rpc"
	"net/rpc/jsonrpc"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"

	"github.com/cachalot-registry/cachalot/upstream/upstreamtest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// upstreamOptions are the options of a registry.
type upstreamOptions struct {
	address string // "": any port of loopback
	open    bool   // no tokens needed
	cdn     bool   // blobs are redirected to another origin
	rate    int    // bytes a second for all connections; 0: no limit
	each    int    // the same for each connection
	content bool   // it has the content of the warm works, and serves until a signal
}

func (o *upstreamOptions) flags(f *flag.FlagSet) {
	f.StringVar(&o.address, "listen", "", "where the registry listens; any port of 127.0.0.1 by default")
	f.BoolVar(&o.open, "open", false, "ask for no token")
	f.BoolVar(&o.cdn, "cdn", false, "redirect blobs to another origin")
	f.IntVar(&o.rate, "rate", 0, "bytes a second of all connections together; 0: no limit")
	f.BoolVar(&o.content, "content", false, "have what warm works ask for, and serve it until interrupted")
	f.IntVar(&o.each, "connection-rate", 0, "bytes a second of each connection; 0: no limit")
}

func (o *upstreamOptions) args() []string {
	return []string{
		"upstream", "-listen=" + o.address, "-open=" + strconv.FormatBool(o.open), "-cdn=" + strconv.FormatBool(o.cdn),
		"-rate=" + strconv.Itoa(o.rate), "-connection-rate=" + strconv.Itoa(o.each),
	}
}

// serveUpstream is the upstream's process: a registry of upstreamtest that counts. It
// serves JSON-RPC on in and out until in ends.
func serveUpstream(ctx context.Context, o upstreamOptions, in io.ReadCloser, out io.Writer) error {
	t := &scope{}
	defer t.end()
	auth := upstreamtest.Bearer
	if o.open {
		auth = upstreamtest.NoAuth
	}
	r := upstreamtest.New(t, upstreamtest.Options{
		Address: o.address, Auth: auth, AnonymousToo: true, CDN: o.cdn, ExpiresIn: 300, Listener: newPace(o.rate, o.each).listener,
	})
	if t.failed != nil {
		return t.failed
	}
	if o.content {
		r.AddImage(repository, tag, warmContent(warmBlobSize).Image)
		_, err := fmt.Fprintf(out, "%s/v2/%s/manifests/%s\n", r.URL, repository, tag)
		<-ctx.Done()
		return err
	}
	s := rpc.NewServer()
	if err := s.RegisterName("Upstream", &Control{r}); err != nil {
		return err
	}
	s.ServeCodec(jsonrpc.NewServerCodec(pipe{in, out})) // ends with in
	return nil
}

// Control is the JSON-RPC interface to the registry.
type Control struct{ registry *upstreamtest.Registry }

// ImageSpec is an image to add as repository:tag, made by upstreamtest.NewImage.
type ImageSpec struct {
	Seed  uint64
	Sizes []int
}

// Added describes an image that was added.
type Added struct {
	URL    string // of the registry
	Layers []ocispec.Descriptor
	Size   int64
}

// Add adds an image, and a small one as earlier:tag.
func (c *Control) Add(spec ImageSpec, reply *Added) error {
	c.registry.AddImage(earlier, tag, upstreamtest.NewImage(spec.Seed+1, 1024))
	img := c.registry.AddImage(repository, tag, upstreamtest.NewImage(spec.Seed, spec.Sizes...))
	*reply = Added{URL: c.registry.URL, Size: img.Size()}
	for _, l := range img.Layers {
		reply.Layers = append(reply.Layers, l.Descriptor)
	}
	return nil
}

// Counted is the number of requests at the registry, its token server and its CDN, and the
// bytes of manifests and blobs sent.
type Counted struct {
	Requests map[upstreamtest.Op]int
	Sent     int64
}

func (c Counted) all() int64 {
	n := 0
	for _, k := range c.Requests {
		n += k
	}
	return int64(n)
}

// Count returns the counts since Forget.
func (c *Control) Count(_ struct{}, reply *Counted) error {
	*reply = Counted{Requests: c.registry.Counts(), Sent: c.registry.SentAll()}
	return nil
}

// Forget resets all counts.
func (c *Control) Forget(_ struct{}, _ *struct{}) error {
	c.registry.Forget()
	return nil
}

type pipe struct {
	io.ReadCloser
	io.Writer
}

// registry is the benchmark's client of the upstream process.
type registry struct {
	Added
	process *process
	client  *rpc.Client
}

// startUpstream starts a registry with an image in its own process, on the clients' processors.
func (b *bench) startUpstream(ctx context.Context, o upstreamOptions, spec ImageSpec) (*registry, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	said, err := os.CreateTemp(b.dir, "upstream-*.log")
	if err != nil {
		return nil, err
	}
	r := &registry{}
	connect := func(cmd *exec.Cmd) error {
		in, err := cmd.StdinPipe()
		if err != nil {
			return err
		}
		cmd.Stdout = nil // the pipe below has its responses
		out, err := cmd.StdoutPipe()
		if err != nil {
			return err
		}
		r.client = jsonrpc.NewClient(duplex{out, in})
		return nil
	}
	name := said.Name()
	if err := said.Close(); err != nil {
		return nil, err
	}
	if r.process, err = spawn(ctx, b.cores.client, name, connect, append([]string{self}, o.args()...)...); err != nil {
		return nil, err
	}
	if err := r.client.Call("Upstream.Add", spec, &r.Added); err != nil {
		r.stop()
		return nil, fmt.Errorf("start the upstream: %w: %s", err, r.process.tail())
	}
	return r, nil
}

// duplex joins both pipes of a process.
type duplex struct {
	io.ReadCloser
	io.WriteCloser
}

func (d duplex) Close() error { return errors.Join(d.ReadCloser.Close(), d.WriteCloser.Close()) }

func (r *registry) stop() {
	_ = r.client.Close() // this ends it
	r.process.stop()
}

func (r *registry) forget() error {
	return r.client.Call("Upstream.Forget", struct{}{}, &struct{}{})
}

func (r *registry) count() (Counted, error) {
	var c Counted
	err := r.client.Call("Upstream.Count", struct{}{}, &c)
	return c, err
}

// scope implements what upstreamtest needs of a test.
type scope struct {
	mu      sync.Mutex // guards the fields below
	cleanup []func()
	failed  error
}

func (t *scope) Helper() {}

func (t *scope) Fatalf(format string, args ...any) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.failed = fmt.Errorf(format, args...)
}

func (t *scope) Cleanup(f func()) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.cleanup = append(t.cleanup, f)
}

func (t *scope) TempDir() string {
	dir, err := os.MkdirTemp("", "cachalot-bench-")
	if err != nil {
		t.Fatalf("make a folder: %v", err)
		return ""
	}
	t.Cleanup(func() { _ = os.RemoveAll(filepath.Clean(dir)) })
	return dir
}

func (t *scope) end() {
	t.mu.Lock()
	list := t.cleanup
	t.mu.Unlock()
	for i := range list {
		list[len(list)-1-i]()
	}
}
