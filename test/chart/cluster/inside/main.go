// Command inside is the program of the cluster test's pods: the upstream registry, the
// clients, the pods of pulled images, and work on a node. Its first argument selects one.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "inside:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	if len(args) == 0 {
		return errors.New("which task?")
	}
	task, args := args[0], args[1:]
	want := func(n int, usage string) error {
		if len(args) < n {
			return fmt.Errorf("usage: inside %s %s", task, usage)
		}
		return nil
	}
	switch task {
	case "run":
		<-ctx.Done()
		return nil
	case "archive":
		if err := want(4, "IMAGE ARCHITECTURE USER PATH=FILE..."); err != nil {
			return err
		}
		return archive(os.Stdout, args[0], args[1], args[2], args[3:])
	case "registry":
		if err := want(2, "ADDRESS NAME:TAG..."); err != nil {
			return err
		}
		return registry(ctx, args[0], args[1:])
	case "get":
		if err := want(1, "URL"); err != nil {
			return err
		}
		return get(ctx, args[0])
	case "load":
		if err := want(1, "URL < FILE"); err != nil {
			return err
		}
		return load(ctx, args[0], os.Stdin)
	case "pull":
		if err := want(1, "HOST:PORT/NAME:TAG"); err != nil {
			return err
		}
		return pull(ctx, args[0])
	case "tree":
		if err := want(1, "PATH"); err != nil {
			return err
		}
		return tree(os.Stdout, args[0])
	case "write":
		if err := want(1, "PATH < CONTENT"); err != nil {
			return err
		}
		return write(args[0], os.Stdin)
	case "folder":
		if err := want(1, "PATH"); err != nil {
			return err
		}
		return os.MkdirAll(args[0], 0o755)
	case "remove":
		if err := want(1, "PATH"); err != nil {
			return err
		}
		return os.RemoveAll(args[0])
	case "forget":
		if err := want(2, "SOCKET IMAGE [now]"); err != nil {
			return err
		}
		return forget(ctx, args[0], args[1], len(args) > 2 && args[2] == "now")
	case "process":
		if err := want(3, "POD-UID EXECUTABLE FOLDER"); err != nil {
			return err
		}
		return process(args[0], args[1], args[2])
	}
	return fmt.Errorf("there is no task %q", task)
}

func get(ctx context.Context, url string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", url, resp.Status)
	}
	_, err = io.Copy(os.Stdout, resp.Body)
	return err
}

func writeJSON(w io.Writer, v any) error { return json.NewEncoder(w).Encode(v) }
