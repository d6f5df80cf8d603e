// Command bench measures cachalot beside distribution, nginx and a direct pull,
// in one run on one machine, and compares them in pairs.
//
//	go run ./test/bench                                  # everything; some 10 minutes
//	go run ./test/bench -only warm-blob,manifest         # a part
//	go run ./test/bench -write docs/benchmarks.md        # everything, and the page
//	go run ./test/bench -before /tmp/cachalot-old -only tag
//	go run ./test/bench -rival zot=http://127.0.0.1:5005,pid=123
//
// Where each part runs:
//
//	last processor        the other processors
//	┌──────────────┐      ┌─────────────────┐
//	│ server under │ ◄──► │ clients (here)  │
//	│ test         │ ◄──► │ upstream, which │  another process, asked by JSON-RPC
//	└──────────────┘      │ counts          │
//	                      └─────────────────┘
//
// Each figure is the ratio of two measurements made one after the other, cachalot
// and a rival, A B B A …; the table has the median of those ratios, their middle
// half and their extremes. The server's processor time is that of its process
// and what it started, by its CPU clock, in nanoseconds.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr); err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, in io.ReadCloser, out, progress io.Writer) error {
	if len(args) == 0 {
		return compareAll(ctx, args, out, progress)
	}
	switch args[0] {
	case "push", "files":
		if len(args) != 2 {
			return errors.New("want bench push URL, or bench files FOLDER")
		}
		c := warmContent(warmBlobSize)
		if args[0] == "push" {
			return c.push(ctx, args[1])
		}
		return c.writeFiles(args[1])
	case "upstream":
		var o upstreamOptions
		f := flag.NewFlagSet("bench upstream", flag.ContinueOnError)
		f.SetOutput(progress)
		o.flags(f)
		if err := f.Parse(args[1:]); err != nil {
			return err
		}
		return serveUpstream(ctx, o, in, out)
	}
	return compareAll(ctx, args, out, progress)
}

// work is a part of the benchmark.
type work struct {
	name string
	run  func(context.Context, *bench) ([]row, error)
}

func works() []work {
	var list []work
	for _, w := range warmWorks() {
		list = append(list, work{w.name, w.run})
	}
	for _, w := range coldWorks() {
		list = append(list, work{w.name, w.run})
	}
	return append(list, work{"storm", theStorm().run}, work{"slow-reader", theSlowReader().run})
}

const usage = `bench [FLAGS]                measure cachalot beside its rivals, and print a table
bench push URL               push what warm works ask for, for a rival of your own
bench files FOLDER           write it as files
bench upstream -content      serve it as a registry, until interrupted
                             (bench upstream -help has its flags)

docs/benchmarks.md says what is measured and how.

`

// options are the options of the command.
type options struct {
	only, write, dir, cachalot, before string
	without                            string
	rivals                             []external
	pairs, divide                      int
	during                             time.Duration
}

func parseOptions(args []string, progress io.Writer) (options, error) {
	var o options
	f := flag.NewFlagSet("bench", flag.ContinueOnError)
	f.SetOutput(progress)
	var names []string
	for _, w := range works() {
		names = append(names, w.name)
	}
	f.StringVar(&o.only, "only", "", "`works` to measure, with commas between: "+strings.Join(names, ", "))
	f.StringVar(&o.write, "write", "", "a `page` to put the table into, between its marks")
	f.StringVar(&o.dir, "dir", os.TempDir(), "a `folder` for everything that is served, so all on one file system")
	f.StringVar(&o.cachalot, "cachalot", "", "the `binary` to measure; by default it is built from these sources")
	f.StringVar(&o.before, "before", "", "another `binary` of cachalot, as a rival named before")
	f.StringVar(&o.without, "without", "", "`rivals` to leave out: nginx, distribution")
	f.IntVar(&o.pairs, "pairs", 7, "measurements of each two")
	f.IntVar(&o.divide, "divide", 1, "make images and crowds so many times smaller, to try it; the figures are of no use then")
	f.DurationVar(&o.during, "during", time.Second, "how long one measurement of warm work is to take")
	f.Func("rival", "`NAME=URL,pid=PID`: a server that runs on this machine, for warm work (docs/benchmarks.md); may be repeated", func(s string) error {
		e, err := parseExternal(s)
		o.rivals = append(o.rivals, e)
		return err
	})
	f.Usage = func() {
		_, _ = fmt.Fprint(progress, usage)
		f.PrintDefaults()
	}
	if err := f.Parse(args); err != nil {
		return o, err
	}
	switch {
	case f.NArg() > 0:
		return o, fmt.Errorf("what is %q? bench -help says what it takes", f.Arg(0))
	case o.pairs < 1 || o.divide < 1:
		return o, errors.New("-pairs and -divide must be 1 at least")
	case o.only != "" && o.write != "":
		return o, errors.New("-write is for a whole run, without -only")
	}
	for _, name := range list(o.only) {
		if !slices.Contains(names, name) {
			return o, fmt.Errorf("-only %s: there are %s", name, strings.Join(names, ", "))
		}
	}
	return o, nil
}

func list(s string) []string {
	return strings.FieldsFunc(s, func(r rune) bool { return r == ',' || r == ' ' })
}

func compareAll(ctx context.Context, args []string, out, progress io.Writer) (err error) {
	o, err := parseOptions(args, progress)
	if err != nil {
		return err
	}
	b := &bench{pairs: o.pairs, during: o.during, externals: o.rivals, divide: o.divide, progress: progress, begin: time.Now()}
	if b.cores, err = splitCores(); err != nil {
		return err
	}
	parent, err := filepath.Abs(o.dir) // nginx takes a relative path from its own folder
	if err != nil {
		return err
	}
	if b.dir, err = os.MkdirTemp(parent, "cachalot-bench-"); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(b.dir)) }()
	if err := b.writeCertificate(); err != nil {
		return err
	}
	versions, err := b.choose(ctx, o)
	if err != nil {
		return err
	}
	machine := b.machine(ctx, versions)
	if err := pin(os.Getpid(), b.cores.client); err != nil {
		return err
	}
	var rows []row
	for _, w := range works() {
		if o.only != "" && !slices.Contains(list(o.only), w.name) {
			continue
		}
		more, err := w.run(ctx, b)
		if err != nil {
			return fmt.Errorf("%s: %w", w.name, err)
		}
		rows = append(rows, more...)
	}
	if _, err := fmt.Fprintf(out, "%s\n\n%s%s", machine, text(rows), bullets(b.notes)); err != nil {
		return err
	}
	if o.write != "" {
		return writePage(o.write, b.markdown(machine, rows))
	}
	return nil
}

// choose finds or builds the servers, and returns their versions.
func (b *bench) choose(ctx context.Context, o options) (versions []string, err error) {
	b.cachalot = o.cachalot
	if b.cachalot == "" {
		b.say("building cachalot")
		if b.cachalot, err = buildCachalot(ctx, b.dir); err != nil {
			return nil, err
		}
		versions = append(versions, "cachalot "+commit(ctx))
	} else {
		versions = append(versions, "cachalot "+o.cachalot)
	}
	b.kinds = []kind{cachalotKind("cachalot", b.cachalot)}
	if !slices.Contains(list(o.without), "nginx") {
		binary, err := findNginx(ctx)
		if err != nil {
			return nil, fmt.Errorf("%w; -without nginx leaves it out", err)
		}
		b.kinds = append(b.kinds, nginxKind(binary))
		versions = append(versions, nginxVersion(ctx, binary))
	}
	if !slices.Contains(list(o.without), "distribution") {
		b.say("distribution %s, built once", distributionVersion)
		binary, err := installDistribution(ctx)
		if err != nil {
			return nil, fmt.Errorf("%w; -without distribution leaves it out", err)
		}
		b.kinds = append(b.kinds, distributionKind(binary))
		versions = append(versions, "distribution "+distributionVersion)
	}
	if o.before != "" {
		before := cachalotKind("before", o.before)
		before.again = true
		b.kinds = append(b.kinds, before)
	}
	return versions, nil
}
