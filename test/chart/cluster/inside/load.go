package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"time"
)

// load requests a URL over new connections until the file at its input ends. It prints the number
// of requests, and fails if one of them did.
func load(ctx context.Context, url string, until io.Reader) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	go func() {
		_, _ = io.Copy(io.Discard, until) // its end is what counts
		stop()
	}()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 10 * time.Second}
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for n := 0; ; n++ {
		select {
		case <-ctx.Done():
			fmt.Println(n)
			return nil
		case <-tick.C:
		}
		req, err := http.NewRequestWithContext(context.WithoutCancel(ctx), http.MethodGet, url, nil)
		if err != nil {
			return err
		}
		resp, err := client.Do(req)
		if err != nil {
			return fmt.Errorf("request %d: %w", n, err)
		}
		_, err = io.Copy(io.Discard, resp.Body)
		_ = resp.Body.Close()
		if err != nil || resp.StatusCode != http.StatusOK {
			return fmt.Errorf("request %d: %s, %w", n, resp.Status, err)
		}
	}
}
