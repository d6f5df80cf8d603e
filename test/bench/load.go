package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// request is a GET that the load repeats, with the expected length of the body.
type request struct {
	url    *url.URL
	accept string
	size   int64
}

// insecure is a client's TLS: a rival may have any certificate. containerd, BuildKit and
// dockerd use HTTP/1.1.
func insecure() *tls.Config {
	return &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"http/1.1"}}
}

// connection is one keep-alive client. It implements only a little of HTTP, so that the
// server and not the client is busy.
type connection struct {
	conn   net.Conn
	raw    syscall.RawConn // without TLS
	cipher string          // with TLS
	text   []byte          // the request
	size   int64
	buf    []byte // bytes of a response
}

const (
	maxHeader    = 16 << 10
	discardChunk = 1 << 20
)

func dial(ctx context.Context, r request) (*connection, error) {
	var d net.Dialer
	c := &connection{size: r.size, buf: make([]byte, maxHeader, discardChunk)}
	c.text = fmt.Appendf(nil, "GET %s HTTP/1.1\r\nHost: %s\r\nUser-Agent: cachalot-bench\r\nAccept: %s\r\n\r\n", r.url.RequestURI(), r.url.Host, r.accept)
	tcp, err := d.DialContext(ctx, "tcp", r.url.Host)
	if err != nil {
		return nil, err
	}
	c.conn = tcp
	if r.url.Scheme == "https" {
		t := tls.Client(tcp, insecure())
		if err := t.HandshakeContext(ctx); err != nil {
			_ = tcp.Close()
			return nil, err
		}
		s := t.ConnectionState()
		c.conn, c.cipher = t, tls.VersionName(s.Version)+" "+tls.CipherSuiteName(s.CipherSuite)
		return c, nil
	}
	if c.raw, err = tcp.(*net.TCPConn).SyscallConn(); err != nil {
		_ = tcp.Close()
		return nil, err
	}
	return c, nil
}

// get sends the request once and returns the length of the body.
func (c *connection) get() (int64, error) {
	if _, err := c.conn.Write(c.text); err != nil {
		return 0, err
	}
	read := 0
	for {
		n, err := c.conn.Read(c.buf[read:])
		if err != nil {
			return 0, fmt.Errorf("read an answer: %w", err)
		}
		read += n
		header, rest, ok := bytes.Cut(c.buf[:read], []byte("\r\n\r\n"))
		if !ok {
			if read == len(c.buf) {
				return 0, fmt.Errorf("the header of an answer is longer than %d bytes", len(c.buf))
			}
			continue
		}
		length, err := bodyLength(header)
		if err == nil && length != c.size {
			err = fmt.Errorf("the answer has %d bytes, the content has %d", length, c.size)
		}
		if err == nil && int64(len(rest)) > length {
			err = errors.New("the answer is longer than it says")
		}
		if err != nil {
			return 0, err
		}
		return length, c.discard(length - int64(len(rest)))
	}
}

// bodyLength parses a header without its blank line.
func bodyLength(header []byte) (int64, error) {
	status, fields, _ := bytes.Cut(header, []byte("\r\n"))
	if !bytes.HasPrefix(status, []byte("HTTP/1.1 200")) {
		return 0, fmt.Errorf("the answer is %q", status)
	}
	for line := range bytes.SplitSeq(fields, []byte("\r\n")) {
		name, value, _ := bytes.Cut(line, []byte(":"))
		if bytes.EqualFold(name, []byte("Content-Length")) {
			return strconv.ParseInt(string(bytes.TrimSpace(value)), 10, 64)
		}
	}
	return 0, errors.New("the answer has no Content-Length, which this client needs")
}

// discard reads n bytes of the connection. On a socket without TLS it does not copy them
// (MSG_TRUNC, tcp(7)).
func (c *connection) discard(n int64) error {
	buf := c.buf[:cap(c.buf)]
	for n > 0 && c.raw == nil {
		got, err := c.conn.Read(buf[:min(n, int64(len(buf)))])
		if n -= int64(got); err != nil && n > 0 {
			return fmt.Errorf("read a body: %w", err)
		}
	}
	for n > 0 {
		var got int
		var err error
		wait := c.raw.Read(func(fd uintptr) bool {
			got, _, err = unix.Recvfrom(int(fd), buf[:min(n, int64(len(buf)))], unix.MSG_TRUNC|unix.MSG_DONTWAIT)
			return !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR)
		})
		if wait != nil {
			err = wait // it is closed; err is of the previous try
		}
		if err != nil {
			return fmt.Errorf("read a body: %w", err)
		}
		if got == 0 {
			return errors.New("read a body: the connection ended in the middle")
		}
		n -= int64(got)
	}
	return nil
}

// sample is the result of one measurement.
type sample struct {
	cpu             time.Duration // of the server
	wall            time.Duration // of the clients
	requests, bytes int64         // of the clients
	upstream        int64         // requests that reached the upstream
	cipher          string

	// For cold work only.
	pulled  pulled
	counted Counted
	fetched float64       // bytes from upstream per byte of content
	peak    int64         // memory of the server, in bytes
	alone   time.Duration // wall time without the concurrent work
}

// load sends n requests from several keep-alive clients at once, and measures the process pid.
func load(ctx context.Context, pid, clients int, n int64, r request) (sample, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	connections := make([]*connection, clients)
	for i := range connections {
		c, err := dial(ctx, r)
		if err != nil {
			return sample{}, fmt.Errorf("connect: %w", err)
		}
		connections[i] = c
		defer func() { _ = c.conn.Close() }()
	}
	defer context.AfterFunc(ctx, func() {
		for _, c := range connections {
			_ = c.conn.Close() // so that reads end
		}
	})()

	var left, requests, received atomic.Int64
	left.Store(n)
	var wg sync.WaitGroup
	errs := make([]error, clients)
	before, err := cpuTime(pid)
	if err != nil {
		return sample{}, err
	}
	begin := time.Now()
	for i, c := range connections {
		wg.Go(func() {
			for left.Add(-1) >= 0 {
				size, err := c.get()
				if err != nil {
					errs[i] = err
					cancel()
					return
				}
				requests.Add(1)
				received.Add(size)
			}
		})
	}
	wg.Wait()
	wall := time.Since(begin)
	after, err := cpuTime(pid)
	if err := errors.Join(errors.Join(errs...), err); err != nil {
		return sample{}, fmt.Errorf("GET %s: %w", r.url, err)
	}
	return sample{
		cpu: after - before, wall: wall, requests: requests.Load(), bytes: received.Load(), cipher: connections[0].cipher,
	}, nil
}

// parseRequest joins a rival's URL and a registry's path.
func parseRequest(base, path, accept string, size int64) (request, error) {
	u, err := url.Parse(strings.TrimSuffix(base, "/") + path)
	if err != nil {
		return request{}, err
	}
	if u.Port() == "" {
		return request{}, fmt.Errorf("%s: the URL must have a port", base)
	}
	return request{url: u, accept: accept, size: size}, nil
}

// httpClient is for pulls and for requests that are not timed.
func httpClient() *http.Client {
	return &http.Client{Transport: &http.Transport{
		TLSClientConfig: insecure(), MaxIdleConnsPerHost: 16, DisableCompression: true,
	}}
}
