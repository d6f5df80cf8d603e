// Command dindbase stands in for the programs of docker:dind, by the name it is
// called: dockerd, of which only the version is asked, and dockerd-entrypoint.sh.
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"syscall"
)

func main() {
	if filepath.Base(os.Args[0]) == "dockerd" {
		fmt.Printf("Docker version %s, build 0123456\n", os.Getenv("TEST_VERSION"))
		return
	}
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGHUP)
	err := json.NewEncoder(os.Stdout).Encode(map[string]any{"pid": os.Getpid(), "args": os.Args, "env": os.Environ()})
	if err != nil {
		panic(err)
	}
	if os.Getenv("TEST_WAITS") != "" {
		for s := range signals {
			fmt.Println(s)
			if s == syscall.SIGTERM {
				break
			}
		}
	}
	code, _ := strconv.Atoi(os.Getenv("TEST_EXIT"))
	os.Exit(code)
}
