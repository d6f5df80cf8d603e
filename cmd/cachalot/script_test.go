package main

import (
	"context"
	"errors"
	"net"
	"os/exec"
	"strconv"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// exits runs a command that must end with the given code: exits CODE PROGRAM ARGS...
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

// until runs a command again and again until it succeeds: until exec PROGRAM ARGS...
func until(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 || args[0] != "exec" {
		ts.Fatalf("usage: until exec PROGRAM ARGS...")
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	pace := time.NewTicker(20 * time.Millisecond)
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

// freePorts are two that nobody listens on; whoever is told of them listens
// before anybody else is likely to.
func freePorts() ([]string, error) {
	var ports []string
	for range 2 {
		var lc net.ListenConfig
		l, err := lc.Listen(context.Background(), "tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		defer l.Close()
		_, port, err := net.SplitHostPort(l.Addr().String())
		if err != nil {
			return nil, err
		}
		ports = append(ports, port)
	}
	return ports, nil
}

func setupScript(env *testscript.Env) error {
	ports, err := freePorts()
	if err != nil {
		return err
	}
	env.Setenv("PORT", ports[0])
	env.Setenv("ADMIN_PORT", ports[1])
	return nil
}
