package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/cachalot-registry/cachalot/upstream/upstreamtest"
)

// exits runs a command that must end with this code: exits CODE PROGRAM ARGS...
func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits CODE PROGRAM ARGS...")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	got := 0
	if err := ts.Exec(args[1], args[2:]...); err != nil {
		exit, ok := errors.AsType[*exec.ExitError](err)
		if !ok {
			ts.Fatalf("%v: %v", args[1:], err)
		}
		got = exit.ExitCode()
	}
	if got != want {
		ts.Fatalf("%v exits with %d, want %d", args[1:], got, want)
	}
}

// until repeats a command until it succeeds: until exec PROGRAM ARGS...
func until(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 || args[0] != "exec" {
		ts.Fatalf("usage: until exec PROGRAM ARGS...")
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	pace := time.NewTicker(100 * time.Millisecond) // a try costs some 30 ms of CPU time
	defer pace.Stop()
	for {
		err := ts.Exec(args[1], args[2:]...)
		if err == nil {
			return
		}
		select {
		case <-pace.C:
		case <-ctx.Done():
			ts.Fatalf("%v never succeeds: %v", args[1:], err)
		}
	}
}

func setupScript(env *testscript.Env) error {
	tb := scriptTB{env}
	for _, name := range []string{"PORT", "ADMIN_PORT"} {
		_, port, err := net.SplitHostPort(upstreamtest.PortFor(tb))
		if err != nil {
			return err
		}
		env.Setenv(name, port)
	}
	env.Setenv("CACHALOT_ADMIN", "http://127.0.0.1:"+env.Getenv("ADMIN_PORT"))
	up := upstreamtest.New(tb, upstreamtest.Options{})
	env.Setenv("UPSTREAM", up.URL)
	env.Values[upstreamOf{}] = up
	return nil
}

// upstreamOf is the key of a script's registry.
type upstreamOf struct{}

// scriptTB closes a registry at the end of its script.
type scriptTB struct{ env *testscript.Env }

func (scriptTB) Helper()                      {}
func (s scriptTB) Cleanup(f func())           { s.env.Defer(f) }
func (s scriptTB) TempDir() string            { return s.env.WorkDir }
func (s scriptTB) Fatalf(f string, of ...any) { s.env.T().Fatal(fmt.Sprintf(f, of...)) }

// scriptUpstream controls the registry at $UPSTREAM:
//
//	upstream image REPOSITORY TAG SEED SIZE...   add an image with layers of these sizes
//	upstream asked [OP=N...]                     check the requests since the last check
//	upstream manifest REPOSITORY TAG FILE TYPE   add a manifest of this media type
func scriptUpstream(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) == 0 {
		ts.Fatalf("usage: upstream image|asked|manifest ...")
	}
	up := ts.Value(upstreamOf{}).(*upstreamtest.Registry)
	switch what, args := args[0], args[1:]; {
	case what == "image" && len(args) > 3:
		var numbers []int
		for _, a := range args[2:] {
			n, err := strconv.Atoi(a)
			ts.Check(err)
			numbers = append(numbers, n)
		}
		up.AddImage(args[0], args[1], upstreamtest.NewImage(uint64(numbers[0]), numbers[1:]...))
	case what == "manifest" && len(args) == 4:
		up.AddManifest(args[0], upstreamtest.NewContent(args[3], []byte(ts.ReadFile(args[2]))), args[1])
	case what == "asked":
		want := map[upstreamtest.Op]int{}
		for _, a := range args {
			op, n, _ := strings.Cut(a, "=")
			number, err := strconv.Atoi(n)
			ts.Check(err)
			want[upstreamtest.Op(op)] = number
		}
		got := up.Counts()
		delete(got, upstreamtest.Ping)
		if !maps.Equal(got, want) {
			ts.Fatalf("upstream was asked %v, want %v", got, want)
		}
		up.Forget()
	default:
		ts.Fatalf("upstream: %q is not known", args)
	}
}

// replace writes a command's output to a file, with the variable parts replaced: replace
// FROM FILE PATTERN TEXT [PATTERN TEXT...]
func replace(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 4 || len(args)%2 != 0 {
		ts.Fatalf("usage: replace FROM FILE PATTERN TEXT [PATTERN TEXT...]")
	}
	text := ts.ReadFile(args[0])
	for i := 2; i < len(args); i += 2 {
		re, err := regexp.Compile(args[i])
		ts.Check(err)
		text = re.ReplaceAllString(text, args[i+1])
	}
	ts.Check(os.WriteFile(ts.MkAbs(args[1]), []byte(text), 0o600))
}
